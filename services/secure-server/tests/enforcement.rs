//! What three real servers enforce together: owners' terms, and ledgers that must agree.

mod support;

use std::fs;
use std::time::Duration;

use concilium_rpc::identity::Role;
use concilium_rpc::v1::operations_client::OperationsClient;
use concilium_rpc::v1::{GetStatusRequest, ResumeTaskRequest};
use support::{
    ROW_COST_NANO_RHO, World, all, model_upload, query, restart_with, rows, share_model, share_on_terms,
    shifted_network, spent, task_file,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_terms_of_a_model_are_checked_and_equal_on_all_servers() {
    let world = World::start("10").await;
    let owner = world.member(Role::Owner, "ward");
    let mut upload = model_upload("votes", "m", &shifted_network(0));
    upload.headers[0].epoch = 2;
    let refusal = upload.send_to(&owner, 0).await.expect_err("another epoch");
    assert_eq!(refusal.reason(), "INVALID_REQUEST");
    assert!(refusal.to_string().contains("is in epoch 1"), "{refusal}");
    // A budget that pays for no row is refused with both numbers.
    upload.headers[0].epoch = 1;
    upload.headers[0].owner_budget_nano_rho = Some(ROW_COST_NANO_RHO - 1);
    let refusal = upload.send_to(&owner, 0).await.expect_err("a budget for nothing");
    assert_eq!(refusal.reason(), "INVALID_REQUEST");
    assert!(refusal.to_string().contains("0.25000002,"), "{refusal}");
    assert!(refusal.to_string().contains("0.250000021"), "{refusal}");
    // Budgets that differ between the servers are noticed before the model votes.
    for server in 0..3 {
        upload.headers[server].owner_budget_nano_rho = Some(ROW_COST_NANO_RHO * (1 + server as u64));
        upload.send_to(&owner, server).await.expect("the upload is accepted");
    }
    let refusal = upload.activate(&owner, 1).await.expect_err("the budgets differ");
    assert_eq!(refusal.reason(), "MODEL_REJECTED");
    assert!(refusal.to_string().contains("budgets"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_held_models_does_not_start_without_its_ledger() {
    let mut world = World::start("10").await;
    world.cluster.kill_server(1);
    let home = world.cluster.home(1);
    fs::remove_file(home.join("data/ledger.redb")).expect("the ledger is deleted");
    let started = std::process::Command::new(support::program().path)
        .arg("--config")
        .arg(home.join("server.toml"))
        .output()
        .expect("the program runs");
    let text = String::from_utf8_lossy(&started.stderr);
    assert_eq!(started.status.code(), Some(1), "{text}");
    assert!(text.contains("ledger.redb is missing") && text.contains("--new-ledger"), "{text}");
    assert!(!home.join("data/ledger.redb").exists(), "nothing was started anew");
}

/// Why a server has stopped the task; empty if it has not.
async fn stopped(world: &World, server: usize) -> String {
    let operator = world.member(Role::Operator, "operator");
    let mut client = OperationsClient::new(operator.channels[server].clone());
    let status = client.get_status(GetStatusRequest {}).await.expect("the state").into_inner();
    status.tasks.into_iter().find(|task| task.task == "votes").expect("the task").stopped
}

/// Lets the task go on, on all servers.
async fn resume(world: &World) -> [String; 3] {
    let operator = world.member(Role::Operator, "operator");
    let mut was_stopped = [const { String::new() }; 3];
    for (server, was_stopped) in was_stopped.iter_mut().enumerate() {
        let mut client = OperationsClient::new(operator.channels[server].clone());
        let request = ResumeTaskRequest { task: "votes".into(), reason: "the disk was replaced".into() };
        *was_stopped = client.resume_task(request).await.expect("resumed").into_inner().was_stopped;
    }
    was_stopped
}

/// Waits until every server has stopped the task.
async fn wait_until_stopped(world: &World) {
    for server in 0..3 {
        let mut attempts = 0;
        while stopped(world, server).await.is_empty() {
            attempts += 1;
            assert!(attempts < 600, "server {server} does not stop the task");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Server 1 is set back to a copy from before two charges. All servers notice and stop the task; once it
/// is resumed, server 1 has the totals of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_restored_from_an_old_copy_stops_the_task_until_it_is_resumed() {
    let mut world = World::start("10").await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(0)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    all(query(&task, &rows(1)).send(&client).await);

    // The copy, taken while the server stands still.
    let data = world.cluster.home(1).join("data/ledger.redb");
    let copy = world.folder.path().join("copy.redb");
    world.cluster.kill_server(1);
    fs::copy(&data, &copy).expect("a copy");
    world.cluster.start_server(1).expect("it starts again");
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("it joins again");
    all(query(&task, &rows(2)).send(&client).await);
    all(query(&task, &rows(3)).send(&client).await);
    assert_eq!(spent(&world).await, [6 * ROW_COST_NANO_RHO; 3]);

    world.cluster.kill_server(1);
    fs::copy(&copy, &data).expect("the old copy is put back");
    world.cluster.start_server(1).expect("it starts again");
    wait_until_stopped(&world).await;
    for server in 0..3 {
        let why = stopped(&world, server).await;
        assert!(why.contains("ledger of server 1") && why.contains("restored"), "server {server}: {why}");
        assert!(why.contains("has seen"), "server {server}: {why}");
        let refusal = query(&task, &rows(1)).send_to(&client, server).await.err().expect("refused");
        assert_eq!(refusal.reason(), "LEDGER_DIVERGED");
        assert!(refusal.to_string().contains("budget resume"), "{refusal}");
    }
    // It is on the operator's page, as an alarm.
    let page = format!("http://{}/api/overview", world.cluster.web_address(2));
    let overview = page_text(&page).await;
    assert!(overview.contains("Task votes is stopped"), "{overview}");
    // A restart does not make it forget.
    world.cluster.kill_server(0);
    world.cluster.start_server(0).expect("it starts again");
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("it joins again");
    assert!(!stopped(&world, 0).await.is_empty());

    assert!(resume(&world).await.iter().all(|why| why.contains("server 1")));
    // What the copy lacked was taken over, and the budget goes on from there.
    assert_eq!(spent(&world).await, [6 * ROW_COST_NANO_RHO; 3]);
    all(query(&task, &rows(1)).send(&client).await);
    assert_eq!(spent(&world).await, [7 * ROW_COST_NANO_RHO; 3]);
    // Nothing is remembered that stops it again.
    world.cluster.kill_server(2);
    world.cluster.start_server(2).expect("it starts again");
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("it joins again");
    all(query(&task, &rows(1)).send(&client).await);
    assert_eq!(resume(&world).await, ["", "", ""], "nothing was stopped");
}

/// A page of a server, over plain HTTP.
async fn page_text(address: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (host, path) = address.trim_start_matches("http://").split_once('/').expect("a path");
    let mut stream = tokio::net::TcpStream::connect(host).await.expect("the page is served");
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_own_budget_is_used_up_leaves_and_the_others_go_on() {
    let world = World::start("10").await;
    let (small, large) = (world.member(Role::Owner, "small"), world.member(Role::Owner, "large"));
    share_on_terms(&small, "a", 1, Some(5 * ROW_COST_NANO_RHO)).await;
    share_on_terms(&small, "b", 1, Some(3 * ROW_COST_NANO_RHO)).await;
    share_on_terms(&large, "a", 1, Some(6 * ROW_COST_NANO_RHO)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let took_part =
        |parts: &[support::Part; 3]| parts.each_ref().map(|part| (part.receipt.owners, part.receipt.models));
    let parts = all(query(&task, &rows(2)).send(&client).await);
    assert_eq!(took_part(&parts), [(2, 3); 3]);
    // Of the smaller of its two budgets one row is left: too little for two rows, enough for one.
    let parts = all(query(&task, &rows(2)).send(&client).await);
    assert_eq!(took_part(&parts), [(1, 1); 3]);
    let parts = all(query(&task, &rows(1)).send(&client).await);
    assert_eq!(took_part(&parts), [(2, 3); 3]);
    // Its budget is used up, which operators are told with the reason.
    let operator = world.member(Role::Operator, "operator");
    let mut operations = OperationsClient::new(operator.channels[1].clone());
    let status = operations.get_status(GetStatusRequest {}).await.expect("the state").into_inner();
    let left = &status.tasks[0].owners_left;
    assert_eq!(left.keys().collect::<Vec<_>>(), ["small"]);
    assert!(left["small"].contains("0.750000063"), "{left:?}");
    let parts = all(query(&task, &rows(1)).send(&client).await);
    assert_eq!(took_part(&parts), [(1, 1); 3]);
    // Nobody is left: the refusal says so and what is left.
    let refusal = query(&task, &rows(1)).send(&client).await.map(|part| part.err().expect("refused"));
    for refusal in refusal {
        assert_eq!(refusal.reason(), "BUDGET_EXHAUSTED");
        assert!(refusal.to_string().contains("the owners' own budgets"), "{refusal}");
    }
    assert_eq!(spent(&world).await, [6 * ROW_COST_NANO_RHO; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_number_of_models_per_owner_holds_for_models_that_are_there() {
    let tasks = task_file("votes", "10");
    let limit = |models: u32| {
        let lines = tasks.lines().filter(|line| !line.starts_with("models_per_owner"));
        lines.chain([format!("models_per_owner = {models}").as_str()]).collect::<Vec<_>>().join("\n")
    };
    let three = limit(3);
    let mut world = World::start_with([&three, &three, &three], "").await;
    let owner = world.member(Role::Owner, "ward");
    for model in ["a", "b", "c"] {
        share_model(&owner, model, &shifted_network(0)).await;
    }
    let client = world.member(Role::Client, "alice");
    let parts = all(query(&client.task(0, "votes").await, &rows(1)).send(&client).await);
    assert_eq!(parts[0].receipt.models, 3);
    restart_with(&mut world, &limit(2)).await;
    let parts = all(query(&client.task(0, "votes").await, &rows(1)).send(&client).await);
    assert_eq!(parts.each_ref().map(|part| (part.receipt.owners, part.receipt.models)), [(1, 2); 3]);
    let refusal =
        model_upload("votes", "d", &shifted_network(0)).send_to(&owner, 0).await.expect_err("one too many");
    assert_eq!(refusal.reason(), "TOO_LARGE");
    assert!(refusal.to_string().contains("4 is above the limit of 2"), "{refusal}");
}
