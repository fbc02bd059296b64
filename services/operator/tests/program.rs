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
    let output = program(folder).arg("doctor").output().unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{report}");
    let ports = report.lines().filter(|line| line.starts_with("FAULT") && line.contains("port"));
    assert_eq!(ports.count(), 3, "{report}");
    assert!(report.contains("-> the host is there, but nothing listens on this port"), "{report}");
    let output = program(folder).args(["doctor", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let faults = report.as_array().unwrap().iter().filter(|finding| finding["level"] == "FAULT");
    assert!(faults.clone().all(|fault| fault["check"] == "port" && fault["remedy"] != ""), "{report}");
    assert_eq!(faults.count(), 3, "{report}");
}

const TASKS: &str = "[tasks.digits]\nepoch = 1\ninput_shape = [4]\ninput_minimum = 0\ninput_maximum = 1\n\
    fractional_bits = 12\nclasses = 4\nrelease = \"histogram\"\nsigma = 3\nbudget_rho = 2\ndelta = 1e-5\n\
    privacy_unit = \"owner\"\nmodels_per_owner = 2\n";

/// Without any server; with so few releases a sound task is refuted as rarely as with many.
#[test]
fn a_task_is_audited_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("tasks.toml"), TASKS).unwrap();
    let audit = |rest: &str| {
        let line = format!("audit --task-file tasks.toml {rest}");
        let output = program(folder).args(line.split_whitespace()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, table, errors) = audit("--task digits --releases 8000 --json audit.json");
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{table}");
    assert!(table.contains("differ in 2 of their models") && table.contains("not refuted"), "{table}");
    assert!(table.lines().filter(|line| line.ends_with("holds")).count() == 6, "{table}");
    let report = fs::read_to_string(folder.join("audit.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert_eq!((findings.len(), &report["release"]), (6, &serde_json::json!("histogram")));
    for finding in findings {
        let [bound, claim, exact] =
            ["lower_bound", "claim", "exact"].map(|key| finding[key].as_f64().unwrap());
        assert!(bound > 0.0 && bound < exact && exact < claim, "{finding}");
    }
    // At the policy's own delta so few releases can show nothing, and that is said.
    let (code, table, _) = audit("--task digits --releases 1000 --delta 1e-5 --corrupted 1");
    assert_eq!(code, Some(0), "{table}");
    assert!(!table.contains("server 0") && table.contains("server 1"), "{table}");
    assert_eq!(table.lines().filter(|line| line.ends_with("TOO FEW")).count(), 2, "{table}");
    assert!(table.contains("give --releases"), "{table}");
    for (line, part) in [
        ("--task letters", "no task `letters`"),
        ("--task digits --releases 10", "10 releases cannot be audited; use 1000"),
        ("--task digits --releases 1000 --delta 1", "delta 1 is not between 0 and 1"),
        ("--task digits --corrupted 3", "possible values"),
    ] {
        let (code, _, errors) = audit(line);
        assert_eq!(code, Some(2), "{line}: {errors}");
        assert!(errors.contains(part), "{line}: {errors}");
    }
}
