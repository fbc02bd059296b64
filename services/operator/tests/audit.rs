//! An audit that finds a fault, at the seam where noise comes from: the program has none to show.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use clap::Parser as _;
use concilium_audit::ServerNoise;
use concilium_client_library::terminal::{FailureClass, Output};
use concilium_operator::arguments::{Arguments, Command};
use concilium_operator::{audit::audit_with, planning};
use concilium_privacy::{NoiseError, NoiseShare, NoiseSource};

const TASKS: &str = "[tasks.digits]\nepoch = 1\ninput_shape = [4]\ninput_minimum = 0\ninput_maximum = 1\n\
    fractional_bits = 12\nclasses = 2\nrelease = \"label\"\nsigma = 5\nbudget_rho = 1.2297\ndelta = 1e-5\n";

struct Silent;

impl NoiseSource for Silent {
    fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
        Ok(NoiseShare::new(vec![0; bins]))
    }
}

/// Two servers without noise leave a third, corrupted one nothing that it does not know. Among 10000
/// releases that shows without fail.
#[test]
fn a_refuted_release_has_an_exit_code_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (tasks, json) = (folder.path().join("tasks.toml"), folder.path().join("audit.json"));
    std::fs::write(&tasks, TASKS).unwrap();
    let line = format!(
        "concilium-operator audit --task digits --releases 10000 --corrupted 2 --json {}",
        json.display()
    );
    let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
    let Command::Audit(arguments) = arguments.command else { panic!("another command") };
    let policy = planning::of_file(&tasks, Some("digits")).unwrap().remove(0);
    let servers = [0, 1, 2].map(|server| {
        let silent = ServerNoise { answers: Box::new(Silent), threshold: None };
        if server == 2 { ServerNoise::of_server(&policy).unwrap() } else { silent }
    });
    let mut bytes = Vec::new();
    let result = audit_with(&policy, &arguments, servers, &mut Output::new(&mut bytes));
    let (text, failure) = (String::from_utf8(bytes).unwrap(), result.unwrap_err());
    assert_eq!((failure.class(), failure.class().code()), (FailureClass::Refuted, 5), "{text}");
    assert!(text.contains("REFUTED: a loss was measured"), "{text}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let refuted = report["findings"].as_array().unwrap().iter().any(|finding| {
        finding["verdict"] == "refuted" && finding["lower_bound"].as_f64() > finding["claim"].as_f64()
    });
    assert!(refuted, "{report}");
}
