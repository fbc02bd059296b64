//! Randomness that fails on one of three real servers: nothing is released, what was charged stays
//! charged, and requests are answered again when it is back.

mod support;

use std::collections::HashMap;
use std::time::Duration;

use concilium_privacy::Mechanism;
use concilium_rpc::identity::Role;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::GetStatusRequest;
use concilium_rpc::v1::operations_client::OperationsClient;
use ndarray::Array2;
use support::known_noise::{Source, known, program, serve_if_asked, set_broken};
use support::{
    CLASSES, Caller, Part, Query, ROW_COST_NANO_RHO, World, all, open, query, rows, share_model,
    shifted_network, spent, task_file, vote,
};

/// Few rows are drawn ahead, so that a failure shows soon.
const FEW_ROWS_AHEAD: &str = "[limits]\nnoise_rows_ready = 2\nbatch_rows = 8\n";
/// More than are ready.
const ROWS: usize = 6;
/// Sigma 2 on one count: 1 / (2 * 2^2) and the term for the lattice of one bin.
const TEST_COST_NANO_RHO: u64 = 125_000_007;

fn gaussian() -> Mechanism {
    Mechanism::DiscreteGaussian { sigma: "2".parse().expect("a number") }
}

async fn world(test: &str, tasks: &str) -> (World, Caller) {
    let world = World::start_program(program(test), [tasks, tasks, tasks], FEW_ROWS_AHEAD).await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(1)).await;
    let client = world.member(Role::Client, "alice");
    (world, client)
}

/// Every server refuses, by an error that says that the call may be repeated, and the one whose
/// randomness fails says why.
fn assert_refused(parts: &[Result<Part, RpcError>; 3], broken: usize) {
    for (server, part) in parts.iter().enumerate() {
        let error = part.as_ref().err().unwrap_or_else(|| panic!("server {server} released its part"));
        eprintln!("server {server}: {error}");
        assert_eq!(error.reason(), "PEER_UNAVAILABLE", "server {server}: {error}");
        assert!(error.retryable(), "server {server}: {error}");
    }
    let reason = parts[broken].as_ref().err().map(ToString::to_string).unwrap_or_default();
    assert!(reason.contains("the source of randomness failed: injected"), "{reason}");
}

/// Rows of noise among which that of an answer is looked for; failed attempts use up some.
const DRAWN: u64 = 200;

/// Which row of each server's known noise is in an opened row, if each is in it once.
fn noise_in(inputs: &Array2<f64>, row: usize, words: &[i64]) -> Option<[u64; 3]> {
    let mut sum = words.to_vec();
    sum[vote(&inputs.row(row).to_vec(), 1)] -= 1;
    let shares = [0, 1, 2].map(|server| {
        (0..DRAWN).map(|row| known(server, gaussian(), row, CLASSES)).collect::<Vec<Vec<i64>>>()
    });
    let last: HashMap<&[i64], u64> = shares[2].iter().map(Vec::as_slice).zip(0..).collect();
    for (a, first) in shares[0].iter().zip(0..) {
        for (b, second) in shares[1].iter().zip(0..) {
            let rest: Vec<i64> = (0..CLASSES).map(|bin| sum[bin] - a[bin] - b[bin]).collect();
            if let Some(&third) = last.get(rest.as_slice()) {
                return Some([first, second, third]);
            }
        }
    }
    None
}

/// Opens an answer and notes the noise in it, which must not have been in an answer before.
fn assert_fresh(inputs: &Array2<f64>, parts: &[Part; 3], seen: &mut Vec<[u64; 3]>) {
    for (row, words) in open(parts).chunks(CLASSES).enumerate() {
        let found = noise_in(inputs, row, words).expect("the votes and one row of noise of each server");
        for server in 0..3 {
            assert!(seen.iter().all(|before| before[server] != found[server]), "noise used twice: {found:?}");
        }
        seen.push(found);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_released_without_noise_and_the_server_serves_again() {
    serve_if_asked().await;
    let tasks = task_file("votes", "100");
    let (world, client) =
        world("nothing_is_released_without_noise_and_the_server_serves_again", &tasks).await;
    let task = client.task(0, "votes").await;
    let mut seen = Vec::new();
    let first = rows(2);
    assert_fresh(&first, &all(query(&task, &first).send(&client).await), &mut seen);
    let mut charged = 2 * ROW_COST_NANO_RHO;
    for broken in 0..3 {
        assert_eq!(spent(&world).await, [charged; 3]);
        set_broken(&world, broken, Source::Noise(CLASSES), true);
        let inputs = rows(ROWS);
        let asked = query(&task, &inputs);
        assert_refused(&asked.send(&client).await, broken);
        // What was charged stays, and nothing is charged for what was not released.
        assert_eq!(spent(&world).await, [charged; 3]);
        // As long as it lasts, a repeat is refused as well.
        assert!(asked.send(&client).await.iter().all(Result::is_err));
        assert_eq!(spent(&world).await, [charged; 3]);
        set_broken(&world, broken, Source::Noise(CLASSES), false);
        let (parts, attempts) = asked.send_until_answered(&client).await;
        eprintln!("server {broken}: answered at attempt {attempts} after randomness was back");
        assert!(parts.iter().all(|part| !part.receipt.replayed));
        assert_fresh(&inputs, &parts, &mut seen);
        charged += ROWS as u64 * ROW_COST_NANO_RHO;
    }
    assert_eq!(spent(&world).await, [charged; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_threshold_test_stays_charged_when_noise_for_its_answers_fails() {
    serve_if_asked().await;
    // One model votes, and the known noise of the test is far above or below: the rows that pass are known.
    let release = "release = \"confident_label\"\nconfidence_votes = 1\nconfidence_sigma = 2";
    let tasks = task_file("votes", "100").replace("release = \"histogram\"", release);
    let (world, client) =
        world("a_threshold_test_stays_charged_when_noise_for_its_answers_fails", &tasks).await;
    let task = client.task(0, "votes").await;
    let passes = |row: u64| (0..3).map(|server| known(server, gaussian(), row, 1)[0]).sum::<i64>() >= 0;
    let answered = |first: u64| (first..first + ROWS as u64).filter(|&row| passes(row)).count() as u64;
    assert!(answered(0) > 2, "more answers are due than noise is ready");
    set_broken(&world, 1, Source::Noise(CLASSES), true);
    // What was drawn before the mark was there is used up by a first request at the latest.
    let asked = query(&task, &rows(ROWS));
    let refused: Query = asked.clone();
    assert_refused(&refused.send(&client).await, 1);
    // The bits of the test were opened among the servers: they stay paid for. The answers were not.
    let tested = ROWS as u64 * TEST_COST_NANO_RHO;
    assert_eq!(spent(&world).await, [tested; 3]);
    set_broken(&world, 1, Source::Noise(CLASSES), false);
    let (parts, attempts) = asked.send_until_answered(&client).await;
    eprintln!("answered at attempt {attempts}; the test of the failed attempts stays charged");
    let own = parts[0].receipt.charged_nano_rho;
    assert_eq!(
        own,
        tested + u64::from(parts[0].receipt.consenting_rows.expect("a test")) * ROW_COST_NANO_RHO
    );
    let now = spent(&world).await;
    assert_eq!(now, [now[0]; 3]);
    assert!(now[0] >= tested + own && (now[0] - own).is_multiple_of(tested), "{now:?}");
}

/// What a server says of its links.
async fn last_error(world: &World, server: usize) -> String {
    let operator = world.member(Role::Operator, "operator");
    let mut client = OperationsClient::new(operator.channels[server].clone());
    let status = client.get_status(GetStatusRequest {}).await.expect("the state").into_inner();
    status.lanes.iter().map(|lane| lane.last_error.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_link_comes_about_without_randomness_for_its_keys() {
    serve_if_asked().await;
    let tasks = task_file("votes", "100");
    let (mut world, client) = world("no_link_comes_about_without_randomness_for_its_keys", &tasks).await;
    let task = client.task(0, "votes").await;
    for broken in [0, 2] {
        let before = spent(&world).await;
        set_broken(&world, broken, Source::LinkKeys, true);
        // Links that are up keep their keys; a lost one needs new keys.
        all(query(&task, &rows(1)).send(&client).await);
        world.cluster.kill_server((broken + 1) % 3);
        world.cluster.start_server((broken + 1) % 3).expect("it starts again");
        let mut attempts = 0;
        while !last_error(&world, broken).await.contains("the source of randomness failed: injected") {
            attempts += 1;
            assert!(attempts < 600, "no reason is told: {}", last_error(&world, broken).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let asked = query(&task, &rows(1));
        for (server, part) in asked.send(&client).await.into_iter().enumerate() {
            let error = part.err().unwrap_or_else(|| panic!("server {server} released its part"));
            assert!(error.retryable(), "server {server}: {error}");
        }
        let after: Vec<u64> = before.iter().map(|spent| spent + ROW_COST_NANO_RHO).collect();
        assert_eq!(spent(&world).await.to_vec(), after);
        set_broken(&world, broken, Source::LinkKeys, false);
        world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("the servers join again");
        asked.send_until_answered(&client).await;
    }
}
