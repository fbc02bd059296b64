//! A server that is told to stop finishes what it has begun.
#![cfg(unix)]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use concilium_rpc::identity::Role;
use concilium_rpc::status::RpcError;
use support::{Caller, ROW_COST_NANO_RHO, World, open, query, rows, share_model, shifted_network, spent};
use tokio::task::JoinSet;

/// Clients that ask at the same time, and rows of each request.
const CLIENTS: usize = 6;
const ROWS: usize = 2;

/// How long a server may take to end. It takes a fraction of it on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn terminate(world: &World, server: usize) {
    let process = world.cluster.process_id(server).expect("the server runs").to_string();
    let sent = Command::new("kill").args(["-TERM", &process]).status().expect("kill runs");
    assert!(sent.success(), "no signal to server {server}");
}

#[track_caller]
fn assert_ends_well(world: &mut World, server: usize) {
    let status = world.cluster.wait_for_end(server, PATIENCE).expect("a process can be waited for");
    let status = status.unwrap_or_else(|| panic!("server {server} does not stop"));
    assert_eq!(status.code(), Some(0), "server {server}");
}

/// Asks under one id until all three servers have answered, as a client does. Every refusal on the way
/// must allow that.
async fn ask_until_answered(client: &Caller, answered: &AtomicU64) {
    let task = loop {
        match client.prediction(0).list_tasks(concilium_rpc::v1::ListTasksRequest {}).await {
            Ok(tasks) => break tasks.into_inner().tasks.remove(0),
            Err(status) => {
                let error = RpcError::from_status(&status);
                assert!(error.retryable(), "{error:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let asked = query(&task, &rows(ROWS));
    for _ in 0..3_000 {
        let parts = asked.send(client).await;
        let errors: Vec<_> = parts.iter().filter_map(|part| part.as_ref().err()).collect();
        if errors.is_empty() {
            open(&support::all(parts));
            answered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        for error in errors {
            assert!(error.retryable(), "{error:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never answered");
}

async fn wait_for_answers(answered: &AtomicU64, more: u64) {
    let begin = answered.load(Ordering::Relaxed);
    for _ in 0..6_000 {
        if answered.load(Ordering::Relaxed) >= begin + more {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no more answers");
}

/// Servers stop one by one and all at once under load. Each ends with code 0, clients get their answers
/// or are told to repeat, and at the end every server has charged every answer exactly once.
#[tokio::test(flavor = "multi_thread")]
async fn a_termination_signal_lets_batches_finish_and_ledgers_agree() {
    let mut world = World::start("100000").await;
    let owner = world.member(Role::Owner, "ward");
    for model in 0..3 {
        share_model(&owner, &format!("m{model}"), &shifted_network(model)).await;
    }
    let answered = Arc::new(AtomicU64::new(0));
    let enough = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let client = world.member(Role::Client, &format!("alice-{client}"));
        let (answered, enough) = (Arc::clone(&answered), Arc::clone(&enough));
        clients.spawn(async move {
            while !enough.load(Ordering::Relaxed) {
                ask_until_answered(&client, &answered).await;
            }
        });
    }
    for stopped in [vec![0], vec![1], vec![2], vec![2, 0, 1]] {
        wait_for_answers(&answered, 20).await;
        for &server in &stopped {
            terminate(&world, server);
        }
        for &server in &stopped {
            assert_ends_well(&mut world, server);
        }
        for &server in &stopped {
            world.cluster.start_server(server).expect("it starts again");
        }
        world.cluster.wait_until_ready(PATIENCE).await.expect("they join again");
    }
    wait_for_answers(&answered, 20).await;
    enough.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.expect("every refusal allowed a repeat");
    }
    let charged = answered.load(Ordering::Relaxed) * ROWS as u64 * ROW_COST_NANO_RHO;
    assert_eq!(spent(&world).await, [charged; 3]);
}

/// A client that waits for a batch that can't come about is told to repeat when its server stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_client_is_told_to_repeat() {
    let extra = "[limits]\narrival_timeout_ms = 600000\nrequest_timeout_ms = 600000\n";
    let tasks = support::task_file("votes", "10");
    let mut world = World::start_with([&tasks, &tasks, &tasks], extra).await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(0)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let asked = query(&task, &rows(1));
    // The other servers' parts never come, so the request waits.
    let waiting = tokio::spawn(async move { asked.send_to(&client, 1).await.map(|_| ()) });
    let operator = world.member(Role::Operator, "operator");
    for attempt in 0.. {
        let status =
            concilium_rpc::v1::operations_client::OperationsClient::new(operator.channels[1].clone())
                .get_status(concilium_rpc::v1::GetStatusRequest {})
                .await
                .expect("the status is told")
                .into_inner();
        if status.tasks.iter().any(|task| task.queued_requests == 1) {
            break;
        }
        assert!(attempt < 1_000, "the request does not arrive");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    terminate(&world, 1);
    assert_ends_well(&mut world, 1);
    let error = waiting.await.expect("no panic").expect_err("no answer");
    assert!(error.retryable(), "{error:?}");
    assert_eq!(spent_elsewhere(&world).await, [0, 0]);
}

async fn spent_elsewhere(world: &World) -> [u64; 2] {
    let operator = world.member(Role::Operator, "operator");
    let mut spent = [0; 2];
    for (server, spent) in [0, 2].into_iter().zip(&mut spent) {
        let mut budget =
            concilium_rpc::v1::budget_client::BudgetClient::new(operator.channels[server].clone());
        let request = concilium_rpc::v1::GetBudgetRequest { task: "votes".into() };
        let answer = budget.get_budget(request).await.expect("budget");
        *spent = answer.into_inner().tasks[0].spent_nano_rho.expect("operators see totals");
    }
    spent
}
