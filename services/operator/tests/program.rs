//! The program as an operator runs it, as far as no server is needed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path};

use assert_cmd::Command;

fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_concilium-operator"));
    command.current_dir(folder).env_remove("RUST_LOG").env_remove("CONCILIUM_CONFIG");
    command
}

#[test]
fn certificates_are_made_as_the_help_says() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let help = program(folder).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    // The examples of the help are run as they stand there.
    for line in help.lines().map(str::trim).filter(|line| line.starts_with("concilium-operator certs")) {
        program(folder).args(line.split_whitespace().skip(1)).assert().success();
    }
    for file in ["authority/ca.key", "certificates/ca.pem", "certificates/operator-olga.key"] {
        assert!(folder.join(file).exists(), "{file}");
    }
    // An authority is never overwritten.
    let key = fs::read(folder.join("authority/ca.key")).unwrap();
    program(folder).args(["certs", "init", "authority"]).assert().code(2);
    assert_eq!(fs::read(folder.join("authority/ca.key")).unwrap(), key);
}

#[test]
fn the_configuration_of_the_help_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    program(folder).args(["certs", "init", "authority"]).assert().success();
    program(folder)
        .args("certs issue --ca authority --role operator --name olga --out certificates".split(' '))
        .assert()
        .success();
    let help = program(folder).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let sample: String = help
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("servers ="))
        .take_while(|line| !line.trim().is_empty())
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    // Ports that were free a moment ago and have no listener, instead of the sample's hosts.
    let sample = ["host0:7400", "host1:7400", "host2:7400"].iter().fold(sample, |sample, host| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(sample.contains(host), "{sample}");
        sample.replace(host, &free.to_string())
    });
    fs::write(folder.join("operator.toml"), sample).unwrap();
    for command in ["budget", "status"] {
        let output = program(folder).arg(command).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(4), "{message}");
        assert!(message.contains("127.0.0.1:"), "{message}");
        let output = program(folder).args([command, "--server", "1"]).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), message.lines().count()), (Some(4), 1), "{message}");
        assert!(message.contains("server 1"), "{message}");
    }
}
