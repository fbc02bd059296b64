//! The check of receipts as somebody runs it who was shown a file of answers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path};

use assert_cmd::Command;
use concilium_client::receipt::StoredReceipt;
use concilium_rpc::{
    certificates::Authority,
    identity::{Identity, Role},
    receipt::issue,
    tls::TlsMaterial,
    v1::{NoiseMechanism, Receipt, noise_mechanism::Kind},
};
use serde_json::{Value, json};

const ID: [u8; 16] = [7; 16];
const NOW_MS: i64 = 1_800_000_000_000;

fn material(authority: &Authority, identity: &Identity, folder: &Path) -> TlsMaterial {
    let issued = authority.issue_between(identity, &[], 1_000_000, 2_000_000_000).unwrap();
    issued.save(folder).unwrap().load().unwrap()
}

/// The certificates of the three servers; `ca.pem` is written beside.
fn servers(folder: &Path) -> [TlsMaterial; 3] {
    let authority = Authority::create().unwrap();
    [0, 1, 2].map(|server| material(&authority, &Identity::server(server).unwrap(), folder))
}

fn receipt() -> Receipt {
    Receipt {
        task: "digits".into(),
        epoch: 3,
        request_id: ID.to_vec().into(),
        rows: 2,
        charged_nano_rho: 80_000_002,
        charged_epsilon: 1.67,
        delta: 1e-5,
        models: 25,
        owners: 24,
        model_set_digest: vec![5; 32].into(),
        client: "alice".into(),
        mechanism: Some(NoiseMechanism {
            kind: Kind::DiscreteGaussian.into(),
            parameter_millionths: 5_000_000,
        }),
        ..Receipt::default()
    }
}

fn stored(tls: &TlsMaterial, receipt: Receipt) -> Value {
    let signed = issue(tls, receipt, b"own", b"nxt", NOW_MS).unwrap();
    serde_json::to_value(StoredReceipt::new(&signed)).unwrap()
}

/// A file of answers as `predict --json` writes it, as far as the check reads it.
fn file(servers: &[TlsMaterial; 3]) -> Value {
    let receipts = servers.each_ref().map(|tls| stored(tls, receipt()));
    json!({ "requests": [{
        "request_id": hex::encode(ID),
        "rows": 2,
        "models": 25,
        "owners": 24,
        "model_set_digest": hex::encode([5; 32]),
        "charged_rho": "0.080000002",
        "receipts": receipts,
    }] })
}

/// Runs the check: exit code and everything it said.
fn verify(folder: &Path, answers: &Value) -> (Option<i32>, String) {
    fs::write(folder.join("answers.json"), answers.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_concilium-client"));
    command.current_dir(folder).args(["receipt", "verify", "answers.json", "--ca", "ca.pem"]);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn what_the_servers_signed_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let servers = servers(folder.path());
    let (code, text) = verify(folder.path(), &file(&servers));
    assert_eq!(code, Some(0), "{text}");
    for needle in ["alice", "digits", "0.080000002", "1.670", "2027-01-15", "OK: 1 requests"] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    // No components can be guessed with what is in the file.
    assert!(!file(&servers).to_string().contains("result_key"));
}

#[test]
fn what_does_not_hold_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let servers = servers(folder.path());
    let good = file(&servers);
    let refused = |change: &dyn Fn(&mut Value), code: i32, needle: &str| {
        let mut answers = good.clone();
        change(&mut answers);
        let (exit, text) = verify(folder.path(), &answers);
        assert_eq!(exit, Some(code), "{text}");
        assert!(text.contains(needle), "{needle}: {text}");
    };
    let request = |answers: &mut Value, field: &str, value: Value| answers["requests"][0][field] = value;
    // The file says something else than what was signed.
    refused(&|file| request(file, "charged_rho", json!("0.04")), 3, "servers signed 0.080000002");
    refused(&|file| request(file, "models", json!(26)), 3, "`models` 26");
    // The signed bytes were changed, or a signature is another one's.
    refused(
        &|file| {
            let mut changed = receipt();
            changed.models = 26;
            let bytes = stored(&servers[1], changed)["receipt"].clone();
            file["requests"][0]["receipts"][1]["receipt"] = bytes;
        },
        3,
        "receipt of server 1 does not hold",
    );
    refused(&|file| file["requests"][0]["receipts"].as_array_mut().unwrap().swap(0, 2), 3, "server 2 signed");
    refused(&|file| drop(file["requests"][0]["receipts"].as_array_mut().unwrap().pop()), 3, "2 receipts");
    // A server signed something else than the others.
    refused(
        &|file| {
            let other = Receipt { charged_nano_rho: 40_000_001, ..receipt() };
            file["requests"][0]["receipts"][2] = stored(&servers[2], other);
        },
        3,
        "`charged_nano_rho` is 80000002 on server 0 but 40000001 on server 2",
    );
    // Nobody is a server by his own authority, nor with a client's certificate.
    refused(
        &|file| {
            let elsewhere = tempfile::tempdir().unwrap();
            file["requests"][0]["receipts"][0] = stored(&self::servers(elsewhere.path())[0], receipt());
        },
        3,
        "receipt of server 0 does not hold",
    );
    refused(
        &|file| {
            let elsewhere = tempfile::tempdir().unwrap();
            let identity = Identity::new(Role::Client, "alice").unwrap();
            let client = material(&Authority::create().unwrap(), &identity, elsewhere.path());
            file["requests"][0]["receipts"][0] = stored(&client, receipt());
        },
        3,
        "not of a server",
    );
    // Files that cannot be read.
    refused(&|file| *file = json!({ "requests": [] }), 2, "no request");
    refused(&|file| *file = json!({}), 2, "`predict --json`");
    fs::remove_file(folder.path().join("ca.pem")).unwrap();
    refused(&|_| (), 2, "ca.pem");
}
