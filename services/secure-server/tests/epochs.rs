//! How epochs follow each other on three real servers: on whose word one begins, what it begins with, and
//! which models vote in it.

mod support;

use std::process::Command;

use concilium_client_library::terminal::Output;
use concilium_operator::export::verify_live;
use concilium_rpc::identity::Role;
use concilium_rpc::v1::{ListModelsRequest, ModelState};
use support::{
    Caller, ROW_COST_NANO_RHO, World, all, model_upload, query, restart_with, rows, share_on_terms,
    shifted_network, spent, stop_with, task_file,
};

/// The task file of an epoch, with a basis and who answers for it if they are given.
fn tasks(epoch: u64, declared: Option<(&str, &str)>) -> String {
    let keys = declared.map_or_else(String::new, |(basis, by)| {
        format!("\nepoch_basis = \"{basis}\"\nepoch_attested_by = \"{by}\"")
    });
    task_file("votes", "10").replace("epoch = 1", &format!("epoch = {epoch}{keys}"))
}

/// Runs the program with the configuration of server 1: exit code, and all that it says.
fn run(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(support::program().path);
    command.args(arguments).arg("--config").arg(world.cluster.home(1).join("server.toml"));
    let output = command.output().expect("the program runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

/// Server 1 neither starts nor passes the check, and says all of this.
fn refused(world: &World, needles: &[&str]) {
    for arguments in [&["config", "check"][..], &[]] {
        let (code, text) = run(world, arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        for needle in needles {
            assert!(text.contains(needle), "{arguments:?}: {needle} in\n{text}");
        }
    }
}

/// Three servers with a model of owner `ward`, which may cost `budget` rows, and two rows spent on it by
/// `alice` in epoch 1.
async fn world_with_spending(budget: Option<u64>) -> (World, Caller, Caller) {
    let world = World::start("10").await;
    let (owner, client) = (world.member(Role::Owner, "ward"), world.member(Role::Client, "alice"));
    share_on_terms(&owner, "old", 1, budget.map(|rows| rows * ROW_COST_NANO_RHO)).await;
    all(query(&client.task(0, "votes").await, &rows(2)).send(&client).await);
    (world, owner, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_after_one_with_spending_needs_a_word_and_new_models() {
    let (mut world, owner, client) = world_with_spending(None).await;
    // While the server runs, a check cannot see what was spent, and says so.
    let path = world.cluster.home(1).join("tasks.toml");
    std::fs::write(&path, tasks(2, None)).expect("the task file is written");
    let (code, text) = run(&world, &["config", "check", "--running"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("warning: ") && text.contains("`tasks.votes.epoch_basis`"), "{text}");

    stop_with(&mut world, &tasks(2, None));
    refused(
        &world,
        &["`tasks.votes.epoch_basis`", "epoch 1 has spent rho 0.500000042 for 2 rows", "carried_over"],
    );
    let word = Some(("retrained", "the board"));
    restart_with(&mut world, &tasks(2, word)).await;
    let task = client.task(0, "votes").await;
    assert_eq!((task.epoch, task.models_ready, task.epoch_attested_by.as_str()), (2, 0, "the board"));
    assert_eq!(spent(&world).await, [0; 3]);
    let refusal = query(&task, &rows(1)).send_to(&client, 1).await.err().expect("no model votes");
    assert_eq!(refusal.reason(), "NO_MODELS");
    for server in 0..3 {
        let listed = owner.models(server).list(ListModelsRequest::default()).await.expect("listed");
        let model = listed.into_inner().models.remove(0);
        assert_eq!((model.state(), model.epoch), (ModelState::Retired, 1));
        assert!(model.reason.contains("epoch 2"), "{}", model.reason);
    }

    // A model needs its owner's statement; the same name serves again.
    let mut upload = model_upload("votes", "old", &shifted_network(0));
    upload.headers.iter_mut().for_each(|header| header.epoch = 2);
    for server in 0..3 {
        let refusal = upload.send_to(&owner, server).await.expect_err("nothing is said");
        assert_eq!(refusal.reason(), "INVALID_REQUEST");
        for needle in ["`retrained_on_new_data`", "--retrained-on-new-data", "the board answers"] {
            assert!(refusal.to_string().contains(needle), "{needle}: {refusal}");
        }
    }
    upload.headers.iter_mut().for_each(|header| header.retrained_on_new_data = true);
    for server in 0..3 {
        upload.send_to(&owner, server).await.expect("the upload is accepted");
    }
    for server in 0..3 {
        let model = upload.activate(&owner, server).await.expect("the model is activated");
        assert!(model.retrained_on_new_data);
    }
    let parts = all(query(&task, &rows(3)).send(&client).await);
    assert_eq!(parts[0].receipt.models, 1);
    assert_eq!(spent(&world).await, [3 * ROW_COST_NANO_RHO; 3], "epoch 1 does not count in it");

    let operator = world.member(Role::Operator, "operator").connection();
    let mut printed = Vec::new();
    verify_live(&operator, &mut Output::new(&mut printed)).await.expect("the ledgers agree");
    let printed = String::from_utf8(printed).expect("text");
    assert_eq!(printed.matches("retrained").count(), 3, "{printed}");
    assert!(printed.contains("the board"), "{printed}");

    // The word stays: neither another one nor none is taken, and the same one is.
    for other in [None, Some(("retrained", "somebody else")), Some(("carried_over", "the board"))] {
        stop_with(&mut world, &tasks(2, other));
        refused(&world, &["`tasks.votes.epoch_basis`", "began as retrained, on the word of the board"]);
    }
    restart_with(&mut world, &tasks(2, word)).await;
    all(query(&client.task(0, "votes").await, &rows(1)).send(&client).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_carries_over_goes_on_with_spending_and_models() {
    let (mut world, owner, client) = world_with_spending(Some(4)).await;
    let word = Some(("carried_over", "the board"));
    restart_with(&mut world, &tasks(2, word)).await;
    let task = client.task(0, "votes").await;
    assert_eq!((task.epoch, task.models_ready), (2, 1));
    assert_eq!(task.caller_spent_nano_rho, 2 * ROW_COST_NANO_RHO);
    assert_eq!(spent(&world).await, [2 * ROW_COST_NANO_RHO; 3]);
    // Of the owner's own four rows two are left, and of them one after this request.
    all(query(&task, &rows(1)).send(&client).await);
    assert_eq!(spent(&world).await, [3 * ROW_COST_NANO_RHO; 3]);
    let refusal = query(&task, &rows(2)).send_to(&client, 0).await.err().expect("too much for the owner");
    assert_eq!(refusal.reason(), "BUDGET_EXHAUSTED");
    assert!(refusal.to_string().contains("the owners' own budgets"), "{refusal}");
    // New models need no statement about their data: all of it counts.
    share_on_terms(&owner, "new", 2, None).await;
    let operator = world.member(Role::Operator, "operator").connection();
    let mut printed = Vec::new();
    verify_live(&operator, &mut Output::new(&mut printed)).await.expect("the ledgers agree");
    let printed = String::from_utf8(printed).expect("text");
    assert_eq!(printed.matches("carried over from epoch 1").count(), 3, "{printed}");

    // The old epoch is closed.
    stop_with(&mut world, &tasks(1, None));
    refused(&world, &["`tasks.votes.epoch`", "went on in epoch 2"]);
    // And the next one may go on from here.
    restart_with(&mut world, &tasks(3, word)).await;
    assert_eq!(spent(&world).await, [3 * ROW_COST_NANO_RHO; 3]);
    assert_eq!(client.task(2, "votes").await.models_ready, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_know_of_another_word_do_not_work_together() {
    let ann = tasks(1, Some(("retrained", "Ann")));
    let cases = [(Some(("retrained", "Ben")), "epoch_attested_by"), (None, "epoch_attested_by")];
    for (other, key) in cases {
        let other = tasks(1, other);
        let world = World::start_with([&ann, &other, &ann], "").await;
        let client = world.member(Role::Client, "alice");
        let task = client.task(0, "votes").await;
        let refusal = query(&task, &rows(1)).send_to(&client, 0).await.err().expect("refused");
        assert_eq!(refusal.reason(), "POLICY_MISMATCH");
        for needle in [key, "Ann"] {
            assert!(refusal.to_string().contains(needle), "{needle}: {refusal}");
        }
    }
}

/// Negative control of the whole file: without a new epoch nothing is asked of anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_epoch_needs_no_word() {
    let mut world = World::start_with([&tasks(7, None), &tasks(7, None), &tasks(7, None)], "").await;
    let owner = world.member(Role::Owner, "ward");
    share_on_terms(&owner, "m", 7, None).await;
    let client = world.member(Role::Client, "alice");
    all(query(&client.task(0, "votes").await, &rows(1)).send(&client).await);
    restart_with(&mut world, &tasks(7, None)).await;
    assert_eq!(spent(&world).await, [ROW_COST_NANO_RHO; 3]);
}
