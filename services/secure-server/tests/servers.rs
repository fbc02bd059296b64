//! Three real server processes over mutual TLS: answers, refusals, and that the servers go on.

mod support;

use std::sync::Arc;
use std::time::Duration;

use concilium_rpc::certificates::Authority;
use concilium_rpc::identity::{Identity, Role};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::budget_client::BudgetClient;
use concilium_rpc::v1::{GetBudgetRequest, ListTasksRequest, ModelState};
use support::{
    CLASSES, Caller, ROW_COST_NANO_RHO, World, all, model_upload, open, query, rows, share_model,
    shifted_network, spent, task_file, vote,
};
use tokio::task::JoinSet;

/// The reason of every server's refusal.
fn reasons(parts: [Result<support::Part, RpcError>; 3]) -> [String; 3] {
    parts.map(|part| part.err().expect("the request is refused").reason().to_owned())
}

/// The noised histogram is within the noise of the true one: |noise| < 40 = 16 standard deviations
/// of the actual noise (sqrt(1.5) * 2), odds below 1e-50 for each count.
fn assert_near_votes(counts: &[i64], inputs: &ndarray::Array2<f64>, shifts: &[usize]) {
    for (row, input) in inputs.rows().into_iter().enumerate() {
        let mut expected = [0; CLASSES];
        let input = input.to_vec();
        shifts.iter().for_each(|&shift| expected[vote(&input, shift)] += 1);
        for class in 0..CLASSES {
            let difference = counts[row * CLASSES + class] - expected[class];
            assert!(difference.abs() < 40, "row {row} class {class}: off by {difference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_are_answered_charged_and_replayed() {
    let world = World::start("10").await;
    let owner = world.member(Role::Owner, "ward");
    // Many models of one kind, so that votes stand far out of the noise.
    for model in 0..60 {
        share_model(&owner, &format!("m{model}"), &shifted_network(1)).await;
    }
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    assert_eq!((task.models_ready, task.owners_ready), (60, 1));
    let inputs = rows(4);
    let asked = query(&task, &inputs);
    let parts = all(asked.send(&client).await);
    let counts = open(&parts);
    assert_near_votes(&counts, &inputs, &[1; 60]);
    for part in &parts {
        assert_eq!(part.receipt.charged_nano_rho, 4 * ROW_COST_NANO_RHO);
        assert_eq!(part.receipt.caller_spent_nano_rho, 4 * ROW_COST_NANO_RHO);
        assert_eq!((part.receipt.models, part.receipt.owners), (60, 1));
        assert_eq!((part.receipt.client.as_str(), part.receipt.delta), ("alice", 1e-5));
        assert_eq!(part.receipt.policy_digest, task.policy_digest);
        assert!((part.receipt.noise_standard_deviation - 2.0 * 1.5_f64.sqrt()).abs() < 1e-9);
        // One request so far, so what it cost is what was spent: rho 1 at delta 1e-5.
        assert_eq!(part.receipt.charged_epsilon, part.receipt.caller_spent_epsilon);
        assert!((7.0..7.1).contains(&part.receipt.charged_epsilon), "{}", part.receipt.charged_epsilon);
        assert!(!part.receipt.replayed);
    }
    assert_eq!(spent(&world).await, [4 * ROW_COST_NANO_RHO; 3]);
    // The same id and shares give the same bytes, free of charge.
    let again = all(asked.send(&client).await);
    assert!(again.iter().all(|part| part.receipt.replayed));
    assert!(again.iter().zip(&parts).all(|(again, first)| again.signed.signature != first.signed.signature));
    assert_eq!(open(&again), counts);
    assert_eq!(spent(&world).await, [4 * ROW_COST_NANO_RHO; 3]);
    // The same id with other content is refused; nothing is charged.
    let mut other = query(&task, &inputs);
    (0..3).for_each(|server| other.headers[server].request_id = asked.headers[server].request_id.clone());
    assert_eq!(reasons(other.send(&client).await), ["REQUEST_CONFLICT"; 3]);
    // Another client may use the same id.
    let bob = world.member(Role::Client, "bob");
    all(asked.send(&bob).await);
    assert_eq!(spent(&world).await, [8 * ROW_COST_NANO_RHO; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_and_mistaken_requests_are_refused_and_the_servers_go_on() {
    let world = World::start("10").await;
    let owner = world.member(Role::Owner, "ward");
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let inputs = rows(2);
    assert_eq!(reasons(query(&task, &inputs).send(&client).await), ["NO_MODELS"; 3]);
    for model in 0..3 {
        share_model(&owner, &format!("m{model}"), &shifted_network(model)).await;
    }

    // Unknown task.
    let mut asked = query(&task, &inputs);
    asked.headers.iter_mut().for_each(|header| header.task = "poems".into());
    let refusal = asked.send_to(&client, 1).await.err().expect("refused");
    assert_eq!(refusal.reason(), "UNKNOWN_TASK");
    assert!(refusal.to_string().contains("poems") && refusal.to_string().contains("votes"), "{refusal}");

    // Input of the wrong shape: one feature less.
    let narrow = concilium_network::InputDomain::new(vec![3], vec![-1.0], vec![1.0]).expect("sound");
    let encoded = narrow.encode(ndarray::Array2::zeros((2, 3)).view(), 12).expect("in the domain");
    let elements: Vec<concilium_ring::Z64> =
        encoded.iter().map(|&v| concilium_ring::Element::from_signed(v)).collect();
    let dealt = concilium_mpc::input::deal(&elements, &mut rand::rngs::SysRng).expect("randomness");
    let mut asked = query(&task, &inputs);
    if let concilium_mpc::input::Component::Data(bytes) = &dealt[1].next {
        let length = concilium_rpc::v1::component::Kind::DataBytes(bytes.len() as u64);
        asked.headers[1].next = Some(concilium_rpc::v1::Component { kind: Some(length) });
        asked.chunks[1] = vec![bytes.clone().into()];
    }
    let refusal = asked.send_to(&client, 1).await.err().expect("refused");
    assert_eq!(refusal.reason(), "SHAPE_MISMATCH");
    assert!(refusal.to_string().contains("8 elements (64 bytes)"), "{refusal}");

    // Malformed shares: a seed of the wrong length, data cut short, data too long, none at all.
    for (spoil, part) in [
        (
            (|q: &mut support::Query| {
                let kind = concilium_rpc::v1::component::Kind::Seed(vec![1; 31].into());
                q.headers[0].own = Some(concilium_rpc::v1::Component { kind: Some(kind) });
            }) as fn(&mut support::Query),
            0,
        ),
        (|q| q.headers[0].next = None, 0),
        (|q| q.chunks[1][0] = q.chunks[1][0].slice(..40), 1),
        (|q| q.chunks[2].push(vec![0; 8].into()), 2),
        (|q| q.chunks[2].clear(), 2),
    ] {
        let mut asked = query(&task, &inputs);
        spoil(&mut asked);
        let refusal = asked.send_to(&client, part).await.err().expect("refused");
        assert_eq!(refusal.reason(), "MALFORMED_SHARES", "{refusal}");
    }

    // Rows: none, or more than one request may have.
    let mut asked = query(&task, &inputs);
    asked.headers[0].rows = 0;
    assert_eq!(asked.send_to(&client, 0).await.err().expect("refused").reason(), "INVALID_REQUEST");
    let refusal = query(&task, &rows(9)).send_to(&client, 0).await.err().expect("refused");
    assert_eq!(refusal.reason(), "TOO_LARGE");
    assert!(refusal.to_string().contains('8') && refusal.to_string().contains('9'), "{refusal}");

    // Another policy than the servers'.
    let mut asked = query(&task, &inputs);
    asked.headers.iter_mut().for_each(|header| header.policy_digest = vec![7; 32].into());
    assert_eq!(reasons(asked.send(&client).await), ["POLICY_MISMATCH"; 3]);

    // A dealer that gives the holders of a component different bytes, for each component.
    let honest = query(&task, &inputs);
    for (server, slot, component) in [(0, "own", 0), (1, "own", 1), (2, "data", 2)] {
        let mut asked = query(&task, &inputs);
        let seed = || {
            Some(concilium_rpc::v1::Component {
                kind: Some(concilium_rpc::v1::component::Kind::Seed(vec![9; 32].into())),
            })
        };
        match slot {
            "own" => asked.headers[server].own = seed(),
            _ => asked.chunks[server] = honest.chunks[server].clone(),
        }
        for refusal in asked.send(&client).await {
            let refusal = refusal.err().expect("an inconsistent dealer is refused by all three");
            assert_eq!(refusal.reason(), "INCONSISTENT_DEALER", "component {component}: {refusal}");
            assert!(refusal.to_string().contains("alice"), "{refusal}");
        }
    }

    // A client that leaves a server out is told so by the others, whichever it is, and holds up nobody.
    for missing in 0..3 {
        let asked = query(&task, &inputs);
        let others = [(missing + 1) % 3, (missing + 2) % 3];
        let (first, second) =
            tokio::join!(asked.send_to(&client, others[0]), asked.send_to(&client, others[1]));
        for refusal in [first, second] {
            let refusal = refusal.map(|_| ()).expect_err("a server has no part");
            assert_eq!(refusal.reason(), "PEER_UNAVAILABLE");
            assert!(refusal.to_string().contains("its part of the request"), "{refusal}");
        }
    }

    // After all of this nothing was charged and the servers answer.
    assert_eq!(spent(&world).await, [0; 3]);
    let parts = all(honest.send(&client).await);
    assert_near_votes(&open(&parts), &inputs, &[0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_decide_who_may_do_what() {
    let extra = "";
    let tasks = task_file("votes", "10");
    let world = World::start_with([&tasks, &tasks, &tasks], extra).await;
    let (client, owner) = (world.member(Role::Client, "alice"), world.member(Role::Owner, "ward"));
    let task = client.task(0, "votes").await;

    // Roles.
    let refusal = query(&task, &rows(1)).send_to(&owner, 0).await.err().expect("owners may not ask");
    assert_eq!(refusal.reason(), "ROLE_NOT_ALLOWED");
    assert!(
        refusal.to_string().contains("owner `ward`") && refusal.to_string().contains("client"),
        "{refusal}"
    );
    let upload = model_upload("votes", "m", &shifted_network(0));
    let refusal = upload.send_to(&client, 0).await.expect_err("clients may not share models");
    assert_eq!(refusal.reason(), "ROLE_NOT_ALLOWED");

    // A name that the configuration does not list.
    let stranger = world.member(Role::Operator, "stranger");
    let mut budget = BudgetClient::new(stranger.channels[0].clone());
    let status = budget.get_budget(GetBudgetRequest::default()).await.expect_err("unknown operator");
    let refusal = RpcError::from_status(&status);
    assert_eq!(refusal.reason(), "UNKNOWN_IDENTITY");
    assert!(refusal.to_string().contains("identities.operators"), "{refusal}");

    // A certificate of another authority does not get through the handshake.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let foreign = Authority::create().expect("an authority");
    let identity = Identity::new(Role::Client, "alice").expect("a name");
    let mut config = client.config.clone();
    config.tls = foreign.issue(&identity, &[], 1).expect("issued").save(folder.path()).expect("saved");
    let outsider = Caller::new(&config);
    let status = outsider.prediction(0).list_tasks(ListTasksRequest {}).await.expect_err("no handshake");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");

    // Nobody took harm.
    assert_eq!(client.task(0, "votes").await.name, "votes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_budget_refuses_on_all_servers_and_names_what_is_left() {
    let world = World::start("1").await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(0)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    // Three of the not quite four rows that rho 1 pays for.
    all(query(&task, &rows(2)).send(&client).await);
    let parts = query(&task, &rows(2)).send(&client).await;
    for part in parts {
        let refusal = part.err().expect("two more rows are too many");
        assert_eq!(refusal.reason(), "BUDGET_EXHAUSTED");
        let text = refusal.to_string();
        assert!(text.contains(&(2 * ROW_COST_NANO_RHO).to_string()), "{text}");
        assert!(text.contains(&(1_000_000_000 - 2 * ROW_COST_NANO_RHO).to_string()), "{text}");
    }
    all(query(&task, &rows(1)).send(&client).await);
    assert_eq!(reasons(query(&task, &rows(1)).send(&client).await), ["BUDGET_EXHAUSTED"; 3]);
    assert_eq!(spent(&world).await, [3 * ROW_COST_NANO_RHO; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_disagree_on_a_task_refuse_it_by_key_and_serve_the_others() {
    let shared = task_file("votes", "10");
    let here = format!("{shared}\n{}", task_file("other", "10"));
    let there = format!("{shared}\n{}", task_file("other", "20"));
    let world = World::start_with([&here, &there, &here], "").await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(0)).await;
    let client = world.member(Role::Client, "alice");
    let other = client.task(0, "other").await;
    let refusal = query(&other, &rows(1)).send_to(&client, 0).await.err().expect("refused");
    assert_eq!(refusal.reason(), "POLICY_MISMATCH");
    let text = refusal.to_string();
    assert!(text.contains("budget_rho") && text.contains("10") && text.contains("20"), "{text}");
    assert!(text.contains("server 1"), "{text}");
    let task = client.task(0, "votes").await;
    all(query(&task, &rows(1)).send(&client).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_comes_back_with_its_ledger_and_models() {
    let mut world = World::start("10").await;
    let owner = world.member(Role::Owner, "ward");
    for model in 0..5 {
        share_model(&owner, &format!("m{model}"), &shifted_network(0)).await;
    }
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let asked = query(&task, &rows(1));
    let before = open(&all(asked.send(&client).await));
    for server in 0..3 {
        world.cluster.kill_server(server);
        // Without it nobody is answered, and the error says to repeat.
        let parts = query(&task, &rows(1)).send(&client).await;
        for part in parts {
            let error = part.map(|_| ()).expect_err("no answer");
            assert!(error.retryable(), "{error:?}");
        }
        world.cluster.start_server(server).expect("it starts again");
        world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("it joins again");
        // The same bytes as before, and new questions are answered and charged.
        assert_eq!(open(&all(asked.send(&client).await)), before);
        let parts = all(query(&task, &rows(1)).send(&client).await);
        assert_eq!(parts[server].receipt.models, 5);
    }
    assert_eq!(spent(&world).await, [4 * ROW_COST_NANO_RHO; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_compared_listed_withdrawn_and_replaced() {
    let world = World::start("10").await;
    let owner = world.member(Role::Owner, "ward");
    let upload = model_upload("votes", "m", &shifted_network(0));
    upload.send_to(&owner, 0).await.expect("uploaded");
    // Not on the others yet.
    let refusal = upload.activate(&owner, 0).await.expect_err("the others lack it");
    assert_eq!(refusal.reason(), "PEER_UNAVAILABLE");
    assert!(refusal.to_string().contains("upload it to all three"), "{refusal}");
    // The two holders of component 2 get different bytes: found, named, never used.
    let mut spoilt = model_upload("votes", "m", &shifted_network(0));
    spoilt.headers.clone_from(&upload.headers);
    spoilt.send_to(&owner, 1).await.expect("uploaded");
    upload.send_to(&owner, 2).await.expect("uploaded");
    let refusal = upload.activate(&owner, 1).await.expect_err("copies differ");
    assert_eq!(refusal.reason(), "INCONSISTENT_DEALER");
    assert!(refusal.to_string().contains("owner `ward`"), "{refusal}");
    assert_eq!(upload.activate(&owner, 1).await.expect_err("it stays rejected").reason(), "MODEL_REJECTED");
    let client = world.member(Role::Client, "alice");
    assert_eq!(client.task(1, "votes").await.models_ready, 0);
    // Withdrawn by name, then shared properly.
    for server in 0..3 {
        let request = concilium_rpc::v1::WithdrawRequest {
            task: "votes".into(),
            model: "m".into(),
            owner: String::new(),
            version: 0,
            reason: "the copies differ".into(),
        };
        owner.models(server).withdraw(request).await.expect("withdrawn");
    }
    share_model(&owner, "m", &shifted_network(0)).await;
    // The same content again changes nothing; other content under a number that was used is refused.
    let mut other = model_upload("votes", "m", &shifted_network(1));
    other.headers[0].version = 1;
    let refusal = other.send_to(&owner, 0).await.expect_err("the number was used");
    assert_eq!(refusal.reason(), "MODEL_EXISTS");
    // Owners see their own models only.
    let other = world.member(Role::Owner, "clinic");
    let request = concilium_rpc::v1::ListModelsRequest { task: String::new() };
    assert!(other.models(0).list(request.clone()).await.expect("listed").into_inner().models.is_empty());
    let listed = owner.models(0).list(request).await.expect("listed").into_inner().models;
    let listed: Vec<_> = listed.iter().map(|m| (m.version, m.state(), m.erased, m.reason.as_str())).collect();
    let withdrawn = "withdrawn by owner `ward`: the copies differ";
    assert_eq!(
        listed,
        [(1, ModelState::Retired, true, withdrawn), (2, ModelState::Ready, false, "")],
        "a model that was withdrawn stays listed"
    );
    // An architecture that lies about its size is refused before any share is read.
    let mut huge = model_upload("votes", "huge", &shifted_network(0));
    huge.headers[0].architecture =
        br#"{"format":2,"input_features":4,"classes":3,"fractional_bits":12,"steps":[{"inputs":[0],"operation":{"kind":"dense","inputs":4,"outputs":99999999},"bound_bits":30}],"final_width":20}"#
            .to_vec()
            .into();
    let refusal = huge.send_to(&owner, 0).await.expect_err("too large");
    assert_eq!(refusal.reason(), "MODEL_REJECTED");
    assert!(refusal.to_string().contains("99999999"), "{refusal}");
    // So is one of a program that wrote another format.
    huge.headers[0].architecture =
        br#"{"input_features":4,"classes":3,"fractional_bits":12,"layers":[{"kind":"affine","inputs":4,"outputs":3,"bound_bits":30}],"final_width":20}"#
            .to_vec()
            .into();
    let refusal = huge.send_to(&owner, 0).await.expect_err("another format");
    assert_eq!(refusal.reason(), "MODEL_REJECTED");
    assert!(refusal.to_string().contains("its format is 1, this program reads 2"), "{refusal}");
}

/// A server is killed at some moment of a batch, again and again. Clients repeat under the same id
/// until they are answered. Every answer must be whole, a repeat must give the same bytes, and every
/// server must have charged at least what was answered: crashes may cost budget, never save it.
#[tokio::test(flavor = "multi_thread")]
async fn crashes_at_any_moment_never_unspend_or_answer_twice() {
    const CRASHES: usize = 9;
    let mut world = World::start("1000").await;
    let owner = world.member(Role::Owner, "ward");
    for model in 0..20 {
        share_model(&owner, &format!("m{model}"), &shifted_network(2)).await;
    }
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let mut answered = 0;
    for crash in 0..CRASHES {
        let asked = query(&task, &rows(3));
        let killed = crash % 3;
        let sent = {
            let (asked, client) = (asked.clone(), Caller::new(&client.config));
            tokio::spawn(async move { asked.send(&client).await.map(|part| part.is_ok()) })
        };
        // Anywhere between before the first share arrives and after the last result has left.
        tokio::time::sleep(Duration::from_millis(3 * crash as u64)).await;
        world.cluster.kill_server(killed);
        world.cluster.start_server(killed).expect("it starts again");
        world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("it joins again");
        let before = sent.await.expect("the task ends");
        let (parts, attempts) = asked.send_until_answered(&client).await;
        let counts = open(&parts);
        assert_near_votes(&counts, &rows(3), &[2; 20]);
        assert_eq!(open(&all(asked.send(&client).await)), counts, "a repeat gave another answer");
        answered += 3;
        println!(
            "crash {crash} of server {killed}: answered before {before:?}, then after {attempts} attempts"
        );
        for (server, spent) in spent(&world).await.into_iter().enumerate() {
            assert!(spent >= answered * ROW_COST_NANO_RHO, "server {server} has charged only {spent}");
        }
        // What one server has charged and another has not is made equal when they join again.
        let mut attempts = 0;
        while spent(&world).await.windows(2).any(|pair| pair[0] != pair[1]) {
            attempts += 1;
            assert!(attempts < 100, "the totals stay different: {:?}", spent(&world).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_many_requests_delays_another_one_by_no_more_than_its_turn() {
    const MANY: usize = 60;
    let tasks = task_file("votes", "200");
    // Each request is more than a batch should hold, so it has one of its own.
    let world = World::start_with([&tasks, &tasks, &tasks], "[limits]\nbatch_rows = 4\n").await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(1)).await;
    let greedy = Arc::new(world.member(Role::Client, "greedy"));
    let modest = world.member(Role::Client, "modest");
    let task = modest.task(0, "votes").await;
    let (finished, mut first) = tokio::sync::mpsc::unbounded_channel();
    let mut running = JoinSet::new();
    for _ in 0..MANY {
        let (greedy, asked, finished) = (Arc::clone(&greedy), query(&task, &rows(8)), finished.clone());
        running.spawn(async move {
            all(asked.send(&greedy).await);
            finished.send(()).expect("the test counts");
        });
    }
    first.recv().await.expect("one is answered");
    let mut before = 1;
    while first.try_recv().is_ok() {
        before += 1;
    }
    all(query(&task, &rows(8)).send(&modest).await);
    let mut meanwhile = 0;
    while first.try_recv().is_ok() {
        meanwhile += 1;
    }
    println!("{before} answers before the other client asked, {meanwhile} while it waited");
    // One batch under way, and one of the greedy client's turns; answers take a moment to be counted.
    assert!(meanwhile <= 8, "{meanwhile} of {MANY} requests came first");
    assert!(before + meanwhile < MANY, "there was nothing to wait for");
    while running.join_next().await.is_some() {}
}
