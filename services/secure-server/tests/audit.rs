//! An auditor's view of three real servers: their exported ledgers hold and agree.

mod support;

use std::fs;

use concilium_client_library::terminal::{FailureClass, Output};
use concilium_operator::export::{export, verify, verify_live};
use concilium_rpc::identity::Role;
use support::{World, all, query, rows, share_model, shifted_network};

#[tokio::test(flavor = "multi_thread")]
async fn exported_ledgers_hold_and_agree() {
    let world = World::start("10").await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(1)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    for _ in 0..3 {
        all(query(&task, &rows(2)).send(&client).await);
    }
    let operator = world.member(Role::Operator, "operator").connection();
    let folder = world.folder.path();
    let files = [0, 1, 2].map(|server| folder.join(format!("server-{server}.jsonl")));
    let mut printed = Vec::new();
    for (server, file) in (0..3).zip(&files) {
        export(&operator, server, file, &mut Output::new(&mut printed)).await.expect("the log is exported");
    }
    let ca = client.config.tls.ca.clone();
    let check = |files: &[std::path::PathBuf]| {
        let mut printed = Vec::new();
        let outcome = verify(files, &ca, &mut Output::new(&mut printed));
        (outcome, String::from_utf8(printed).expect("text"))
    };
    let (outcome, text) = check(&files);
    outcome.expect("the logs agree");
    // Three requests of two rows at rho 0.250000021.
    assert!(text.contains("1.500000126") && text.contains("OK: 3 logs"), "{text}");

    // Later the logs go on from there, and are checked as they are.
    all(query(&task, &rows(1)).send(&client).await);
    let mut live = Vec::new();
    verify_live(&operator, &mut Output::new(&mut live)).await.expect("the ledgers agree");
    let newer = folder.join("newer.jsonl");
    export(&operator, 1, &newer, &mut Output::new(&mut live)).await.expect("the log is exported");
    check(&[files[1].clone(), newer.clone()]).0.expect("the older log is the beginning of the newer one");
    // Server 0's older log lacks the last charge.
    let failure = check(&[files[0].clone(), newer]).0.expect_err("they differ");
    assert_eq!(failure.class(), FailureClass::Refused);

    // Evidence is neither written over nor changed unnoticed, and nobody but operators gets it.
    let failure = export(&operator, 0, &files[0], &mut Output::new(&mut live)).await.expect_err("it exists");
    assert_eq!(failure.class(), FailureClass::Local);
    let changed = fs::read_to_string(&files[2]).expect("text").replace("alice", "mallet");
    fs::write(&files[2], changed).expect("it is written");
    let failure = check(&files).0.expect_err("the text was changed");
    assert!(failure.to_string().contains("the text was changed"), "{failure}");
    let nosy = folder.join("nosy.jsonl");
    let failure =
        export(&client.connection(), 0, &nosy, &mut Output::new(&mut live)).await.expect_err("refused");
    assert!(failure.to_string().contains("client `alice`") && !nosy.exists(), "{failure}");
}
