//! Batches that are computed beside each other, on three real servers.

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use concilium_rpc::identity::Role;
use support::{
    ROW_COST_NANO_RHO, World, all, open, query, rows, share_model, shifted_network, spent, task_file,
};

/// Clients that ask at the same time.
const CLIENTS: usize = 8;

fn log(world: &World, server: usize) -> String {
    fs::read_to_string(world.cluster.log(server)).expect("a log")
}

/// The numbers that a server has logged under this name, for every batch that it began.
fn logged(world: &World, server: usize, name: &str) -> Vec<u64> {
    let text = log(world, server);
    let lines = text.lines().filter(|line| line.contains("\"computing\""));
    lines
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line["fields"][name].as_u64().expect("a number")
        })
        .collect()
}

/// Clients ask until `enough`. Returns how many rows were answered.
async fn ask_until(world: &World, enough: impl Fn(&World) -> bool) -> u64 {
    let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut asking = Vec::new();
    for number in 0..CLIENTS {
        let client = world.member(Role::Client, &format!("client-{number}"));
        let task = client.task(0, "votes").await;
        let (end, answered) = (Arc::clone(&end), Arc::clone(&answered));
        asking.push(tokio::spawn(async move {
            while !end.load(Ordering::Relaxed) {
                // Opening compares what the servers hold in common.
                open(&all(query(&task, &rows(1)).send(&client).await));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for attempt in 0.. {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if enough(world) {
            break;
        }
        assert!(attempt < 1200, "{CLIENTS} clients do not bring it about");
    }
    end.store(true, Ordering::Relaxed);
    for asking in asking {
        asking.await.expect("asking does not panic");
    }
    answered.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_computed_beside_each_other_and_all_servers_charge_alike() {
    let tasks = task_file("votes", "100000");
    let extra = "[observability]\nlog_filter = \"info,concilium_server=debug\"\n[limits]\nlanes = 3\n";
    let world = World::start_with([&tasks, &tasks, &tasks], extra).await;
    share_model(&world.member(Role::Owner, "ward"), "m", &shifted_network(1)).await;
    let many = |world: &World| (0..3).all(|server| logged(world, server, "beside").contains(&2));
    let answered = ask_until(&world, many).await;
    assert_eq!(spent(&world).await, [answered * ROW_COST_NANO_RHO; 3]);
    let began = [0, 1, 2].map(|server| logged(&world, server, "lane"));
    assert_eq!(began[0], began[1], "servers 0 and 1 compute a batch on the same lane");
    assert_eq!(began[0], began[2], "servers 0 and 2 compute a batch on the same lane");
    for server in 0..3 {
        let log = log(&world, server);
        // Had two batches changed places on one server, its total would have been behind at a barrier.
        assert!(!log.contains("the total here was raised"), "server {server}");
        assert!(!log.contains("gave up the links"), "server {server}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_compute_on_as_many_lanes_as_all_of_them_have() {
    let tasks = task_file("votes", "100000");
    let extra = "[observability]\nlog_filter = \"info,concilium_server=debug\"\n";
    let mut world = World::start_with([&tasks, &tasks, &tasks], extra).await;
    share_model(&world.member(Role::Owner, "ward"), "m", &shifted_network(1)).await;
    for server in 0..3 {
        let text = log(&world, server);
        assert!(text.contains("\"lanes\":2"), "server {server}");
    }
    world.cluster.kill_server(1);
    let path = world.cluster.home(1).join("server.toml");
    let config = fs::read_to_string(&path).expect("a configuration");
    fs::write(&path, format!("{config}\n[limits]\nlanes = 1\n")).expect("the configuration is written");
    for server in [0, 2] {
        world.cluster.kill_server(server);
    }
    for server in 0..3 {
        world.cluster.start_server(server).expect("it starts again");
    }
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("they join again");
    let before = spent(&world).await;
    let batches = |world: &World| logged(world, 0, "lane").len() >= 20;
    let answered = ask_until(&world, batches).await;
    assert_eq!(spent(&world).await, before.map(|before| before + answered * ROW_COST_NANO_RHO));
    for server in 0..3 {
        assert!(log(&world, server).contains("\"lanes\":1"), "server {server}");
        assert!(logged(&world, server, "lane").iter().all(|&lane| lane == 1), "server {server}");
        assert!(logged(&world, server, "beside").iter().all(|&beside| beside == 0), "server {server}");
    }
}
