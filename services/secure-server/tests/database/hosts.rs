//! Two hosts of one party.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use concilium_privacy::{Ledger as _, StoredLedger};
use concilium_rpc::identity::Role;
use tokio::net::{TcpListener, TcpStream};

use super::support::{
    ROW_COST_NANO_RHO, World, all, model_upload, open, program, query, rows, shifted_network, spent,
};
use super::{HERE, PATIENCE, world};

/// Address of the second host.
const SECOND: &str = "127.0.0.2";

/// Lets the addresses of server 1 lead to its second host, as a name or an address that moves does.
async fn move_addresses(world: &World) {
    let text = fs::read_to_string(world.cluster.home(HERE).join("server.toml")).expect("the configuration");
    let lines = text.lines().filter_map(|line| line.split_once(" = "));
    let listening = lines.filter(|(key, _)| ["listen", "peer_listen"].contains(key));
    for address in listening.map(|(_, value)| value.trim_matches('"').to_owned()) {
        let listener = TcpListener::bind(&address).await.expect("the first host has gone");
        let target = address.replace("127.0.0.1", SECOND);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let target = target.clone();
                tokio::spawn(async move {
                    if let Ok(mut to) = TcpStream::connect(target).await {
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    }
                });
            }
        });
    }
}

/// A second host of server 1: another process at another address, with another data folder.
struct Host {
    process: Child,
    log: std::path::PathBuf,
}

impl Host {
    fn start(world: &World) -> Host {
        let home = world.cluster.home(HERE);
        let text = fs::read_to_string(home.join("server.toml")).expect("the configuration");
        let config = home.join("second.toml");
        let here = |line: &str| match line.split_once(" = ") {
            Some(("listen" | "peer_listen", _)) => line.replace("127.0.0.1", SECOND),
            Some(("data_directory", _)) => "data_directory = \"data-of-the-second\"".to_owned(),
            _ => line.to_owned(),
        };
        let second = text.lines().map(here).collect::<Vec<_>>().join("\n");
        fs::write(&config, second).expect("it is written");
        let log = home.join("second.log");
        let process = Command::new(program().path)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("the program starts");
        Host { process, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for(&mut self, words: &str) {
        let begin = Instant::now();
        while !self.log().contains(words) {
            let ended = self.process.try_wait().expect("a process");
            assert!(ended.is_none() && begin.elapsed() < PATIENCE, "no `{words}`: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the second host\n{}", self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_host_waits_and_takes_over_with_everything_that_was_spent() {
    let test = "a_second_host_waits_and_takes_over_with_everything_that_was_spent";
    let Some((mut world, _postgres)) = world(test, "10").await else { return };
    let owner = world.member(Role::Owner, "ward");
    let upload = model_upload("votes", "m", &shifted_network(0));
    for server in 0..3 {
        upload.send_to(&owner, server).await.expect("the upload is accepted");
    }
    for server in 0..3 {
        upload.activate(&owner, server).await.expect("the model is activated");
    }
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let asked = query(&task, &rows(2));
    let first = open(&all(asked.send(&client).await));
    assert_eq!(spent(&world).await, [2 * ROW_COST_NANO_RHO; 3]);
    assert!(!world.cluster.home(HERE).join("data/ledger.redb").exists(), "the ledger is in the database");
    // That it was released is noted a moment later; without the note a host without models could not tell.
    tokio::time::sleep(Duration::from_millis(500)).await;

    // While the first host has the ledger the second says that it waits, and the first goes on.
    let mut second = Host::start(&world);
    second.wait_for("another host has the ledger");
    all(query(&task, &rows(1)).send(&client).await);

    // Killed, not ended: the database frees the lock when it notices that the session is gone.
    world.cluster.kill_server(HERE);
    second.wait_for("the ledger is open");
    move_addresses(&world).await;
    world.cluster.wait_until_ready(PATIENCE).await.expect("the second host joins");
    assert_eq!(spent(&world).await, [3 * ROW_COST_NANO_RHO; 3]);
    // What was answered before is answered alike, free of charge.
    let again = all(asked.send(&client).await);
    assert!(again.iter().all(|part| part.receipt.replayed));
    assert_eq!(open(&again), first);

    // Shares of models do not move by themselves: their owner shares again with the new host.
    let refusal = query(&task, &rows(1)).send_to(&client, HERE).await.map(|_| ());
    assert_eq!(refusal.expect_err("it has no models").reason(), "NO_MODELS");
    upload.send_to(&owner, HERE).await.expect("the upload is accepted");
    upload.activate(&owner, HERE).await.expect("the model is activated");
    all(query(&task, &rows(1)).send(&client).await);
    assert_eq!(spent(&world).await, [4 * ROW_COST_NANO_RHO; 3]);
}

/// Somebody has ended the sessions of a host that seemed dead, and another one has taken the ledger over.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_ledger_was_taken_over_answers_nobody_and_ends() {
    let test = "a_server_whose_ledger_was_taken_over_answers_nobody_and_ends";
    let Some((mut world, postgres)) = world(test, "10").await else { return };
    let owner = world.member(Role::Owner, "ward");
    super::support::share_model(&owner, "m", &shifted_network(0)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    all(query(&task, &rows(2)).send(&client).await);

    // The first host may come back before the other has the lock; then it is sent away again.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'";
    let begin = Instant::now();
    let store = loop {
        postgres.query(end).expect("the database answers");
        match postgres.open() {
            Ok(store) => break store,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{error}"),
        }
    };
    let ledger = StoredLedger::open_in(store).expect("the ledger");
    for part in query(&task, &rows(1)).send(&client).await {
        let error = part.map(|_| ()).expect_err("one server has no ledger");
        assert!(error.retryable(), "{error:?}");
    }
    let ended = world.cluster.wait_for_end(HERE, PATIENCE).expect("a process").expect("it ends");
    assert_eq!(ended.code(), Some(1));
    let log = fs::read_to_string(world.cluster.log(HERE)).expect("a log");
    assert!(log.contains("another host has taken the ledger over"), "{log}");
    assert_eq!(ledger.total("votes", 1).expect("the total").rho.units(), 2 * ROW_COST_NANO_RHO);
    drop(ledger);

    // Started again it gets its turn.
    world.cluster.start_server(HERE).expect("it starts");
    world.cluster.wait_until_ready(PATIENCE).await.expect("it joins again");
    all(query(&task, &rows(1)).send(&client).await);
    assert_eq!(spent(&world).await, [3 * ROW_COST_NANO_RHO; 3]);
}
