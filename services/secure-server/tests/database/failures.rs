//! The database dies, or a server dies while it waits for it.

use std::time::Duration;

use concilium_rpc::identity::Role;

use super::support::{Caller, ROW_COST_NANO_RHO, all, open, query, rows, share_model, shifted_network};
use super::{HERE, PATIENCE, agreed, world};

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_a_server_refuses_and_with_it_goes_on() {
    let test = "without_its_database_a_server_refuses_and_with_it_goes_on";
    let Some((mut world, mut postgres)) = world(test, "1000").await else { return };
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(0)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let answered = query(&task, &rows(1));
    let first = open(&all(answered.send(&client).await));
    let mut due = ROW_COST_NANO_RHO;

    postgres.kill();
    for again in [query(&task, &rows(1)), answered.clone()] {
        let refusal = again.send_to(&client, HERE).await.map(|_| ()).expect_err("there is no ledger");
        assert_eq!(refusal.reason(), "LEDGER_UNAVAILABLE", "{refusal}");
        assert!(refusal.retryable());
        // Where the database is, is for its operator.
        assert!(!refusal.to_string().contains("postgres"), "{refusal}");
    }
    let parts = query(&task, &rows(1)).send(&client).await;
    for part in parts {
        let refusal = part.map(|_| ()).expect_err("one server has no ledger");
        assert!(refusal.retryable(), "{refusal:?}");
    }
    postgres.run(&[]);
    world.cluster.wait_until_ready(PATIENCE).await.expect("the servers are connected");
    // The server was not restarted.
    let (again, _) = answered.send_until_answered(&client).await;
    assert_eq!(open(&again), first);
    assert_eq!(agreed(&world).await, due, "nothing was charged without an answer");

    // It dies at some moment of a request, again and again.
    for death in 0..4 {
        let asked = query(&task, &rows(2));
        let sent = {
            let (asked, client) = (asked.clone(), Caller::new(&client.config));
            tokio::spawn(async move { asked.send(&client).await.map(|part| part.is_ok()) })
        };
        tokio::time::sleep(Duration::from_millis(8 * death)).await;
        postgres.kill();
        postgres.run(&[]);
        let before = sent.await.expect("the task ends");
        world.cluster.wait_until_ready(PATIENCE).await.expect("the servers are connected");
        let (parts, attempts) = asked.send_until_answered(&client).await;
        let counts = open(&parts);
        assert_eq!(open(&all(asked.send(&client).await)), counts, "a repeat gave another answer");
        due += 2 * ROW_COST_NANO_RHO;
        // What one server has charged and another has not is made equal when they join again.
        world.cluster.kill_server(0);
        world.cluster.start_server(0).expect("it starts again");
        world.cluster.wait_until_ready(PATIENCE).await.expect("it joins again");
        let now = agreed(&world).await;
        println!(
            "death {death}: answered before {before:?}, then after {attempts} attempts, spent {now} of {due}"
        );
        assert!(now >= due && (now - due).is_multiple_of(2 * ROW_COST_NANO_RHO), "{now} for {due}");
        due = now;
    }
}
