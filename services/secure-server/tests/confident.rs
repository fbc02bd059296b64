//! Confident labels from three real server processes: what is answered, and what it costs.

mod support;

use std::time::Duration;

use concilium_mpc::opening::open_confident_labels;
use concilium_network::Network;
use concilium_rpc::identity::Role;
use concilium_rpc::v1::GetBudgetRequest;
use concilium_rpc::v1::budget_client::BudgetClient;
use ndarray::{Array1, Array2};
use support::{
    CLASSES, Caller, FEATURES, Part, ROW_COST_NANO_RHO, World, all, query, share_model, spent, task_file,
};
use tonic::transport::Channel;

/// Sigma 2 on one count: 1 / (2 * 2^2) and the term for the lattice of one bin.
const TEST_COST_NANO_RHO: u64 = 125_000_007;

/// Models of the tests: a third of them for each class where they do not agree.
const MODELS: usize = 60;

/// Halfway between the largest count of a split vote, 20, and that of a unanimous one, 60: 20 votes, or 8
/// standard deviations of the test's actual noise (sqrt(1.5) * 2) away from both, odds below 1e-14.
const THRESHOLD: usize = 40;

/// The charge for so many rows, of which so many are answered.
fn price(rows: u64, answered: u64) -> u64 {
    rows * TEST_COST_NANO_RHO + answered * ROW_COST_NANO_RHO
}

/// A task that releases confident labels.
fn confident_task(budget_rho: &str) -> String {
    let release =
        format!("release = \"confident_label\"\nconfidence_votes = {THRESHOLD}\nconfidence_sigma = 2");
    task_file("votes", budget_rho).replace("release = \"histogram\"", &release)
}

/// Votes for class `own`, but for class 0 if the last feature is set.
fn network(own: usize) -> Network {
    let weights = Array2::from_shape_fn((FEATURES, CLASSES), |(feature, class)| {
        if feature == FEATURES - 1 && class == 0 { 4.0 } else { 0.0 }
    });
    let bias = Array1::from_shape_fn(CLASSES, |class| if class == own { 1.0 } else { 0.0 });
    Network::perceptron(vec![FEATURES], vec![(weights, bias)]).expect("sizes fit")
}

/// One row for each entry: on a set one all models agree on class 0, on another they are split.
fn inputs(agree: &[bool]) -> Array2<f64> {
    Array2::from_shape_fn((agree.len(), FEATURES), |(row, feature)| {
        if feature == FEATURES - 1 && agree[row] { 1.0 } else { 0.0 }
    })
}

async fn world(budget_rho: &str) -> World {
    let tasks = confident_task(budget_rho);
    let world = World::start_with([&tasks, &tasks, &tasks], "").await;
    let owner = world.member(Role::Owner, "ward");
    for model in 0..MODELS {
        share_model(&owner, &format!("m{model}"), &network(model % CLASSES)).await;
    }
    world
}

/// The labels, after a look at the receipts.
fn open(parts: &[Part; 3]) -> Vec<Option<usize>> {
    let rows = parts[0].receipt.rows as usize;
    let components = parts.each_ref().map(|part| part.components.clone());
    let labels = open_confident_labels(&components, rows, CLASSES).expect("copies agree");
    let answered = labels.iter().flatten().count() as u32;
    for part in parts {
        assert_eq!(part.receipt.consenting_rows, Some(answered));
        assert_eq!(part.receipt.charged_nano_rho, price(rows as u64, answered.into()));
    }
    labels
}

/// What a server has charged.
async fn total(server: &mut BudgetClient<Channel>) -> u64 {
    let answer = server.get_budget(GetBudgetRequest { task: "votes".into() }).await.expect("budget");
    answer.into_inner().tasks[0].spent_nano_rho.expect("operators see totals")
}

fn expected(agree: &[bool]) -> Vec<Option<usize>> {
    agree.iter().map(|&agree| agree.then_some(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_answered_where_models_agree_and_charged_accordingly() {
    let world = world("20").await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let mut due = 0;
    // Mixed, all, none, one of each kind alone.
    for agree in [&[true, false, true, true][..], &[true; 3], &[false; 3], &[true], &[false]] {
        let asked = query(&task, &inputs(agree));
        let parts = all(asked.send(&client).await);
        assert_eq!(open(&parts), expected(agree));
        due += price(agree.len() as u64, agree.iter().filter(|&&agree| agree).count() as u64);
        assert_eq!(spent(&world).await, [due; 3], "{agree:?}");
        // A repeat gives the same bytes, free of charge.
        let again = all(asked.send(&client).await);
        for (part, again) in parts.iter().zip(&again) {
            assert!(again.receipt.replayed);
            assert_eq!(part.components.own, again.components.own);
            assert_eq!(part.components.next, again.components.next);
        }
        assert_eq!(spent(&world).await, [due; 3]);
    }
    // Requests that share a batch get their own rows and pay for their own answers.
    let shapes = [&[false, true][..], &[true], &[false], &[true, true, false]];
    let requests = shapes.map(|agree| {
        let (asked, client) = (query(&task, &inputs(agree)), Caller::new(&client.config));
        tokio::spawn(async move { all(asked.send(&client).await) })
    });
    for (request, agree) in requests.into_iter().zip(shapes) {
        let parts = request.await.expect("the request is answered");
        assert_eq!(open(&parts), expected(agree));
        due += price(agree.len() as u64, agree.iter().filter(|&&agree| agree).count() as u64);
    }
    assert_eq!(spent(&world).await, [due; 3]);
}

/// What a request may cost is set aside before it runs, and what it did not cost is free again.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_reservation_is_free_again() {
    let world = world("1").await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    // Three rows could cost more than rho 1, two of them 0.75; without consensus each costs 0.125.
    let refused = query(&task, &inputs(&[false; 3])).send(&client).await;
    for part in refused {
        let refusal = part.err().expect("refused");
        assert_eq!(refusal.reason(), "BUDGET_EXHAUSTED");
        assert!(refusal.to_string().contains(&price(3, 3).to_string()), "{refusal}");
    }
    all(query(&task, &inputs(&[false])).send(&client).await);
    all(query(&task, &inputs(&[false, false])).send(&client).await);
    assert_eq!(spent(&world).await, [price(3, 0); 3]);
    // What remains pays for one row whatever comes out.
    assert!(1_000_000_000 - price(3, 0) >= price(1, 1));
    assert_eq!(open(&all(query(&task, &inputs(&[true])).send(&client).await)), [Some(0)]);
    assert_eq!(spent(&world).await, [price(4, 1); 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_threshold_above_the_number_of_models_is_refused_with_the_arithmetic() {
    let tasks = confident_task("10");
    let world = World::start_with([&tasks, &tasks, &tasks], "").await;
    let owner = world.member(Role::Owner, "ward");
    for model in 0..3 {
        share_model(&owner, &format!("m{model}"), &network(0)).await;
    }
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    for part in query(&task, &inputs(&[true])).send(&client).await {
        let refusal = part.err().expect("three models never reach forty votes");
        assert_eq!(refusal.reason(), "TOO_FEW_MODELS");
        assert!(!refusal.retryable());
        for needle in ["40 > 3", "only 3 models", "sigma 2 votes", "confidence_votes"] {
            assert!(refusal.to_string().contains(needle), "{refusal}");
        }
    }
    assert_eq!(spent(&world).await, [0; 3]);
}

/// A server is killed as soon as another one shows the charge for the test, which is before the answer is
/// committed, or soon after. The client repeats under the same id until it is answered: the answer is
/// whole, and no server has charged less than it cost.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_two_charges_never_unspends() {
    const CRASHES: usize = 6;
    let mut world = world("1000").await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let agree = [true, false, true];
    let mut due = 0;
    // One connection each, so that a charge is seen within a millisecond or so.
    let operator = world.member(Role::Operator, "operator");
    let mut watched = operator.channels.clone().map(BudgetClient::new);
    for crash in 0..CRASHES {
        let asked = query(&task, &inputs(&agree));
        let killed = crash % 3;
        let before = spent(&world).await;
        let sent = {
            let (asked, client) = (asked.clone(), Caller::new(&client.config));
            tokio::spawn(async move { asked.send(&client).await.map(|part| part.is_ok()) })
        };
        let seen = loop {
            let now = total(&mut watched[(killed + 1) % 3]).await;
            if now != before[(killed + 1) % 3] {
                break now - before[(killed + 1) % 3];
            }
        };
        world.cluster.kill_server(killed);
        world.cluster.start_server(killed).expect("it starts again");
        world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("it joins again");
        let first = sent.await.expect("the task ends");
        let (parts, attempts) = asked.send_until_answered(&client).await;
        assert_eq!(open(&parts), expected(&agree));
        assert_eq!(open(&all(asked.send(&client).await)), expected(&agree), "a repeat gave another answer");
        due += price(3, 2);
        let now = spent(&world).await;
        let moment = if seen == price(3, 0) { "after the test's charge" } else { "after both charges" };
        println!(
            "crash {crash} of server {killed} {moment}: answered {first:?}, {attempts} more attempts, spent {now:?}"
        );
        for (server, now) in now.into_iter().enumerate() {
            assert!(now >= due, "server {server} has charged only {now} of {due}");
            // Tests and answers are charged for whole requests.
            let extra = now - due;
            let tests = (0..=50).any(|tests| {
                extra >= tests * price(3, 0) && (extra - tests * price(3, 0)).is_multiple_of(price(0, 2))
            });
            assert!(tests, "server {server} has charged {extra} beside what was answered");
        }
    }
}
