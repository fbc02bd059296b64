//! A server that stands still is named by those who wait for it.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use concilium_client_library::operations::{Servers, statuses};
use concilium_rpc::identity::Role;
use concilium_rpc::v1::LaneWait;

use crate::support::{Caller, World, all, query, rows, share_model, shifted_network, task_file};

/// Stops or continues a process.
fn signal(name: &str, process: u32) {
    let status = Command::new("kill").args([name, &process.to_string()]).status().expect("kill is there");
    assert!(status.success(), "kill {name} {process}: {status}");
}

/// Queries without pause until it is told to end; refusals are not looked at.
async fn ask_on(client: Arc<Caller>, end: Arc<AtomicBool>) {
    let task = client.task(0, "votes").await;
    while !end.load(Ordering::Relaxed) {
        let _ = query(&task, &rows(2)).send(&client).await;
    }
}

/// The waits of servers 0 and 1 that server 2 is the cause of, once there are any.
async fn stalled(world: &World, patience: Duration) -> Option<(usize, LaneWait)> {
    let operator = world.member(Role::Operator, "operator").connection();
    let end = tokio::time::Instant::now() + patience;
    while tokio::time::Instant::now() < end {
        for server in [0, 1] {
            let states = statuses(&operator, Servers::One(server)).await;
            let state = states.into_iter().next().expect("one was asked").expect("it runs");
            let wait = state.lanes[0].wait.clone();
            if let Some(wait) = wait.filter(|wait| wait.peer == Some(2) && wait.waited_ms >= 1_000) {
                return Some((usize::from(server), wait));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_server_is_named_with_the_step_and_its_return_heals() {
    let tasks = task_file("votes", "1000");
    let extra = "[observability]\nstall_warning_ms = 300\n\n[limits]\npeer_timeout_ms = 120000\n";
    let world = World::start_with([&tasks, &tasks, &tasks], extra).await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(1)).await;
    let client = Arc::new(world.member(Role::Client, "alice"));
    let task = client.task(0, "votes").await;
    // One whole batch, from which the servers know how many rounds there are.
    all(query(&task, &rows(1)).send(&client).await);

    let end = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> =
        (0..4).map(|_| tokio::spawn(ask_on(Arc::clone(&client), Arc::clone(&end)))).collect();
    let process = world.cluster.process(2).expect("server 2 runs");
    // Between two batches nobody waits for the stopped server: then it goes on, and is stopped again.
    let mut found = None;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        signal("-STOP", process);
        found = stalled(&world, Duration::from_secs(5)).await;
        if found.is_some() {
            break;
        }
        signal("-CONT", process);
    }
    let (server, wait) = found.expect("one of twenty stops hits a batch");
    let log = std::fs::read_to_string(world.cluster.log(server)).expect("a log");
    signal("-CONT", process);
    // Batches are under way beside each other, and each lane's wait is reported: this is the one of the status.
    let reports = log.lines().rev().filter(|line| line.contains("waits for server 2"));
    let line = reports
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .find(|line| line["fields"]["step"].as_str() == Some(wait.step.as_str()))
        .unwrap_or_else(|| panic!("no warning of the step {}: {log}", wait.step));
    assert_eq!(
        (line["level"].as_str(), line["fields"]["awaited"].as_str()),
        (Some("WARN"), Some("server 2"))
    );
    assert!(line["fields"]["waited_ms"].as_u64().is_some_and(|waited| waited >= 300), "{line}");
    assert!(line["fields"]["session"].as_u64().is_some_and(|session| session >= 1), "{line}");
    // Rounds are counted against those of the batch before.
    let round = wait.step.split("round ").nth(1).and_then(|round| round.split_once(" of "));
    if let Some((round, of)) = round {
        let (round, of): (u32, u32) = (round.parse().expect("a number"), of.parse().expect("a number"));
        assert!((1..=of).contains(&round), "{}", wait.step);
    } else {
        let steps = ["plan", "digests", "start", "barrier"];
        assert!(steps.contains(&wait.step.as_str()), "{}", wait.step);
    }

    end.store(true, Ordering::Relaxed);
    for asking in asking {
        asking.await.expect("asking does not panic");
    }
    all(query(&task, &rows(1)).send(&client).await);
    let operator = world.member(Role::Operator, "operator").connection();
    for state in statuses(&operator, Servers::All).await {
        let lane = state.expect("all servers run").lanes.remove(0);
        assert!(lane.wait.is_none_or(|wait| wait.waited_ms < 1_000), "a wait stays");
    }
    // The server looks a few times a second.
    for attempt in 0.. {
        let log = std::fs::read_to_string(world.cluster.log(server)).expect("a log");
        if log.contains("the wait has ended") {
            break;
        }
        assert!(attempt < 200, "{log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a server says that it is connected to both others, and what it last said about server 2.
async fn connected(world: &World, server: u8) -> (bool, String) {
    let operator = world.member(Role::Operator, "operator").connection();
    let state = statuses(&operator, Servers::One(server)).await.remove(0).expect("it runs");
    let lane = &state.lanes[0];
    let told = state.peers.iter().find(|peer| peer.party == 2).map(|peer| peer.last_error.clone());
    (lane.next_connected && lane.previous_connected, told.unwrap_or_default())
}

/// A stopped process keeps its connections open and says nothing, like a host behind a cut cable.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_missed_between_batches_too() {
    let tasks = task_file("votes", "1000");
    // Silence ends a connection after this time, or after five seconds if it is less.
    let world = World::start_with([&tasks, &tasks, &tasks], "[limits]\npeer_timeout_ms = 1000\n").await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(1)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    // Longer than silence may last: the beats of an idle server keep the links up.
    let reconnections = |world: &World| {
        let log = std::fs::read_to_string(world.cluster.log(0)).expect("a log");
        log.matches("connected to both other servers").count()
    };
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(reconnections(&world), 1, "idle links were given up");
    all(query(&task, &rows(1)).send(&client).await);

    let process = world.cluster.process(2).expect("server 2 runs");
    signal("-STOP", process);
    for server in [0, 1] {
        for attempt in 0.. {
            let (up, told) = connected(&world, server).await;
            // Whoever missed it first drops its own links, from which the other may learn it.
            if !up && !told.is_empty() {
                break;
            }
            assert!(attempt < 600, "server {server} calls itself connected to a server that is silent");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let logs = [0, 1].map(|server| std::fs::read_to_string(world.cluster.log(server)).expect("a log"));
    assert!(logs.iter().any(|log| log.contains("nothing was heard of it for 5 s")), "{}", logs[0]);
    signal("-CONT", process);
    for server in [0, 1] {
        for attempt in 0.. {
            if connected(&world, server).await.0 {
                break;
            }
            assert!(attempt < 600, "server {server} does not come back to server 2");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    all(query(&task, &rows(1)).send(&client).await);
}
