//! The program as a user runs it, as far as no server is needed: help, exit codes, one-line errors.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path};

use assert_cmd::Command;
use concilium_rpc::{
    certificates::Authority,
    identity::{Identity, Role},
};

fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_concilium-client"));
    command.current_dir(folder).env_remove("RUST_LOG").env_remove("CONCILIUM_CONFIG");
    command
}

/// Runs the program, which must fail with this code and one line on standard error.
fn failure(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = program(folder).args(arguments).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(output.stdout.is_empty());
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn help_teaches() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path()).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for needle in
        ["Examples:", "Exit codes:", "CONCILIUM_CONFIG", "client.toml", "predict", "tasks", "receipt"]
    {
        assert!(help.contains(needle), "{needle}: {help}");
    }
    assert!(output.status.success());
}

#[test]
fn mistakes_have_one_line_and_a_code() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let message = failure(folder, &["tasks"], 2);
    assert!(message.contains("client.toml") && message.contains("--config"), "{message}");

    let identity = Identity::new(Role::Client, "alice").unwrap();
    Authority::create().unwrap().issue(&identity, &[], 1).unwrap().save(folder).unwrap();
    // Ports that were free a moment ago and have no listener.
    let ports: Vec<String> = (0..3)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string())
        .collect();
    let config = format!(
        "servers = {ports:?}\nconnect_timeout_ms = 2000\n[tls]\nca = \"ca.pem\"\n\
         certificate = \"client-alice.pem\"\nkey = \"client-alice.key\"\n"
    );
    fs::write(folder.join("client.toml"), &config).unwrap();
    fs::write(folder.join("x.csv"), "1,2\n3,nan\n").unwrap();

    let message = failure(folder, &["tasks"], 4);
    assert!(ports.iter().any(|address| message.contains(address)), "{message}");
    let message = failure(folder, &["predict", "--task", "t", "--input", "x.csv"], 2);
    assert!(message.contains("row 1 column 1 is NaN"), "{message}");
    let message = failure(folder, &["predict", "--task", "t", "--input", "missing.npy"], 2);
    assert!(message.contains("missing.npy"), "{message}");

    fs::write(folder.join("client.toml"), config.replace("client-alice.key", "ca.pem")).unwrap();
    let message = failure(folder, &["tasks"], 2);
    assert!(message.contains("ca.pem") && message.contains("private key"), "{message}");
    fs::write(folder.join("client.toml"), config.replace("[tls]", "tsl = 1\n[tls]")).unwrap();
    assert!(failure(folder, &["tasks"], 2).contains("tsl"));
}
