//! Requests of a client that was killed are repeated by the next one and charged once.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use concilium_rpc::identity::Role;

use super::world::{World, example_rows, price, released, replayed, told};

/// Rows that are asked about, one in each request.
const ROWS: usize = 60;

/// A bound on waiting: nothing is said about speed.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_is_run_again_and_pays_once() {
    let world = World::start().await;
    let alice = world.member(Role::Client, "alice");
    let rows = format!("0..{ROWS}");
    let options = ["--rows", &rows, "--batch", "1", "--repeat-key", "repeat.key"];

    let mut command = world.command("concilium-client");
    command.arg("--config").arg(&alice).args(["predict", "--task", "digits", "--input"]);
    let mut first = command.arg(example_rows()).args(options).spawn().expect("it runs");
    let begin = Instant::now();
    // Of a batch under way some server may know nothing yet.
    while world.spent_on_each("digits").await[0] < price(3) {
        assert!(begin.elapsed() < PATIENCE, "nothing was charged");
        assert_eq!(first.try_wait().expect("it can be waited for"), None, "it ended before it was killed");
    }
    first.kill().expect("it can be killed");
    first.wait().expect("it can be waited for");
    let paid_before = world.spent_on_each("digits").await[0];
    assert!(paid_before < price(ROWS), "it was killed too late: {paid_before} is spent");
    let mode = fs::metadata(world.folder().join("repeat.key")).expect("a key was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let second = world.predict(&alice, "digits", &example_rows(), &options);
    assert_eq!(world.spent("digits").await, price(ROWS), "each row is paid for once");
    let repeated = replayed(&second);
    assert!((3..ROWS).contains(&repeated), "{repeated} requests were answered before");
    let third = world.predict(&alice, "digits", &example_rows(), &options);
    assert_eq!(released(&third), released(&second));
    // A repeat's receipts are signed anew and hold like the first ones.
    let authority = world.cluster.member(Role::Client, "auditor").expect("a certificate is issued").tls.ca;
    let mut check = world.command("concilium-client");
    let check = check.args(["receipt", "verify", "answers.json", "--ca"]).arg(authority).output();
    let text = told(&check.expect("it runs"));
    assert!(text.contains(&format!("OK: {ROWS} requests")), "{text}");
    assert_eq!(replayed(&third), ROWS);
    assert_eq!(world.spent("digits").await, price(ROWS), "a repeat is charged nothing");

    // The same rows cut into other requests, other rows, another caller and another key are new requests.
    let id = |options: &[&str], config| {
        let answers = world.predict(config, "digits", &example_rows(), options);
        assert_eq!(replayed(&answers), 0, "{answers}");
        answers["requests"][0]["request_id"].as_str().expect("an id").to_owned()
    };
    let bob = world.member(Role::Client, "bob");
    let ids = [
        id(&["--rows", "0..2", "--repeat-key", "repeat.key"], &alice),
        id(&["--rows", "60..61", "--repeat-key", "repeat.key"], &alice),
        id(&["--rows", "0..1", "--repeat-key", "repeat.key"], &bob),
        id(&["--rows", "0..1", "--repeat-key", "other.key"], &alice),
        id(&["--rows", "0..1"], &alice),
        second["requests"][0]["request_id"].as_str().expect("an id").to_owned(),
    ];
    assert_eq!(BTreeSet::from(ids.clone()).len(), ids.len(), "{ids:?}");
    assert_eq!(world.spent("digits").await, price(ROWS + 6));
}
