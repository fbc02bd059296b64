//! A server whose ledger is in a database: with the two others, with a second host, through failures of the
//! database, and with TLS to it.

#[path = "../../../../crates/postgres/tests/support/mod.rs"]
mod postgres;
#[path = "../support/mod.rs"]
mod support;

mod failures;
mod hosts;
mod tls;

use std::time::Duration;

use concilium_demo::cluster::Cluster;
use postgres::Postgres;
use support::{World, program, spent, task_file};

/// The server that has its ledger in the database.
const HERE: usize = 1;

/// A bound on waiting: nothing is said about speed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Three servers, one of them with its ledger in a database; `None`, after a visible line, where PostgreSQL is
/// not installed.
async fn world(test: &str, budget_rho: &str) -> Option<(World, Postgres)> {
    let postgres = Postgres::start(test)?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tasks = task_file("votes", budget_rho);
    let ledger = format!("[ledger]\nurl = \"{}\"\n", postgres.url("postgres"));
    let mut extra = ["", "", ""];
    extra[HERE] = &ledger;
    let mut cluster =
        Cluster::prepare(folder.path(), program(), [&tasks; 3], extra).expect("configurations are written");
    for server in 0..3 {
        cluster.start_server(server).expect("it starts");
    }
    cluster.wait_until_ready(PATIENCE).await.expect("servers connect");
    Some((World { cluster, folder }, postgres))
}

/// Waits until all three servers have charged the same, and says how much.
async fn agreed(world: &World) -> u64 {
    let mut attempts = 0;
    loop {
        let found = spent(world).await;
        if found.iter().all(|one| *one == found[0]) {
            return found[0];
        }
        attempts += 1;
        assert!(attempts < 200, "the totals stay different: {found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
