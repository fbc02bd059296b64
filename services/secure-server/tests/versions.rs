//! Versions of models over real processes: replaced under load, tested before they vote, named by receipts.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use concilium_client_library::operations::{Servers, model_sets};
use concilium_client_library::retry::RetryPolicy;
use concilium_network::{Architecture, Network};
use concilium_owner::{ShareOptions, Shared, Withdrawal, share_model, withdraw};
use concilium_rpc::identity::Role;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::{ListModelsRequest, Model, ModelSet, ModelState};
use ndarray::{Array1, Array2};
use support::{
    CLASSES, Caller, FEATURES, ModelUpload, Part, World, all, model_upload, query, rows, shifted_network,
    task_file,
};

/// The versions of the owner's models on one server.
async fn listed(owner: &Caller, server: usize) -> Vec<Model> {
    let request = ListModelsRequest { task: "votes".into() };
    owner.models(server).list(request).await.expect("listed").into_inner().models
}

/// Shares the next version of `m` with the owner's own program.
async fn replace(owner: &Caller, shift: usize, attempts: u32) -> Result<Shared, String> {
    let connection = owner.connection();
    let task = connection.task("votes").await.map_err(|error| error.to_string())?;
    let retry = RetryPolicy { attempts, ..RetryPolicy::default() };
    let options = ShareOptions { replace: true, retry, ..ShareOptions::default() };
    let shared = share_model(&connection, &task, "m", &shifted_network(shift), &options).await;
    shared.map_err(|error| error.to_string())
}

/// The set that all three receipts of an answer name.
fn named(parts: &[Part; 3]) -> Vec<u8> {
    let [first, second, third] = parts.each_ref().map(|part| part.receipt.model_set_digest.to_vec());
    assert_eq!((&first, &first), (&second, &third), "the servers name different sets");
    first
}

/// The set that an operator finds by its digest, the same on all three servers.
async fn resolve(world: &World, digest: &[u8]) -> ModelSet {
    let operator = world.member(Role::Operator, "operator").connection();
    let answers = model_sets(&operator, Servers::All, digest).await;
    let mut sets: Vec<_> = answers
        .into_iter()
        .map(|answer| {
            let sets = answer.expect("operators may ask").sets;
            let [set] = <[ModelSet; 1]>::try_from(sets).expect("the server knows one such set");
            set
        })
        .collect();
    assert!(sets.windows(2).all(|pair| pair[0].models == pair[1].models));
    sets.remove(0)
}

/// The version of `m` in a set of it alone.
async fn version_of(world: &World, digest: &[u8]) -> u64 {
    let set = resolve(world, digest).await;
    assert_eq!((set.task.as_str(), set.epoch, set.models.len()), ("votes", 1, 1));
    assert_eq!((set.models[0].owner.as_str(), set.models[0].model.as_str()), ("ward", "m"));
    set.models[0].version
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_replaced_under_load_and_no_request_is_refused() {
    const VERSIONS: u64 = 6;
    let world = World::start("100000").await;
    let owner = world.member(Role::Owner, "ward");
    let shared = replace(&owner, 0, 6).await.expect("shared");
    assert!(matches!(shared, Shared::Ready { version: 1, self_test: Some(_), .. }), "{shared:?}");

    let (ended, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = ["alice", "bob"]
        .into_iter()
        .map(|name| {
            let (client, ended) = (world.member(Role::Client, name), Arc::clone(&ended));
            let answered = Arc::clone(&answered);
            tokio::spawn(async move {
                let task = client.task(0, "votes").await;
                let mut digests: Vec<Vec<u8>> = Vec::new();
                while !ended.load(Ordering::Relaxed) {
                    // A refusal on any server fails the test here: nothing is repeated.
                    let parts = all(query(&task, &rows(2)).send(&client).await);
                    assert!(parts.iter().all(|part| (part.receipt.models, part.receipt.owners) == (1, 1)));
                    let digest = named(&parts);
                    if digests.last() != Some(&digest) {
                        digests.push(digest);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                digests
            })
        })
        .collect();
    for version in 2..=VERSIONS {
        let before = answered.load(Ordering::Relaxed);
        while answered.load(Ordering::Relaxed) < before + 10 {
            assert!(!clients.iter().any(|client| client.is_finished()), "a request was refused");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let shared = replace(&owner, version as usize, 1).await.expect("replaced");
        assert!(matches!(shared, Shared::Ready { version: shared, .. } if shared == version), "{shared:?}");
    }
    ended.store(true, Ordering::Relaxed);
    for client in clients {
        let digests = client.await.expect("no request was refused");
        let mut versions = Vec::new();
        for digest in &digests {
            versions.push(version_of(&world, digest).await);
        }
        println!("{} answers in all; of versions {versions:?}", answered.load(Ordering::Relaxed));
        assert!(versions.is_sorted_by(|a, b| a < b), "a version came back: {versions:?}");
        assert!(versions.len() > 3, "the client asked before and after replacements");
    }
    // After a last batch all servers have erased what was replaced.
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    all(query(&task, &rows(1)).send(&client).await);
    for server in 0..3 {
        let models = listed(&owner, server).await;
        assert_eq!(
            models.iter().map(|model| model.version).collect::<Vec<_>>(),
            (1..=VERSIONS).collect::<Vec<_>>()
        );
        for (model, version) in models.iter().zip(1..) {
            let votes = version == VERSIONS;
            assert_eq!((model.state() == ModelState::Ready, model.erased), (votes, !votes), "{model:?}");
            let reason =
                if votes { String::new() } else { format!("version {} took its place", version + 1) };
            assert_eq!(model.reason, reason);
            let test = model.self_test.expect("each was tested");
            assert!(test.rows == 4 && test.rounds > 5 && test.bytes_sent > 100, "{test:?}");
            println!("server {server}, version {version}: {test:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_before_and_after_name_different_sets_that_operators_resolve_for_ever() {
    let mut world = World::start("1000").await;
    let owner = world.member(Role::Owner, "ward");
    let client = world.member(Role::Client, "alice");
    replace(&owner, 0, 6).await.expect("shared");
    let task = client.task(0, "votes").await;
    let before = named(&all(query(&task, &rows(1)).send(&client).await));
    let content = listed(&owner, 0).await[0].content_digest.clone();
    replace(&owner, 1, 6).await.expect("replaced");
    let after = named(&all(query(&task, &rows(1)).send(&client).await));
    assert_ne!(before, after);
    let reason = "trained on wrong labels";
    let withdrawal = Withdrawal { task: "votes", model: "m", reason, ..Withdrawal::default() };
    withdraw(&owner.connection(), &withdrawal).await.expect("withdrawn");
    for server in 0..3 {
        let models = listed(&owner, server).await;
        assert!(models.iter().all(|model| model.erased && model.state() == ModelState::Retired));
        assert_eq!(models[1].reason, "withdrawn by owner `ward`: trained on wrong labels");
        world.cluster.kill_server(server);
        world.cluster.start_server(server).expect("it starts again");
    }
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("they join again");
    // The models are gone; what the receipts name is not.
    assert_eq!((version_of(&world, &before).await, version_of(&world, &after).await), (1, 2));
    let set = resolve(&world, &before[..8]).await;
    assert_eq!((&set.digest[..], &set.models[0].content_digest), (&before[..], &content));
    let operator = world.member(Role::Operator, "operator").connection();
    let unknown = model_sets(&operator, Servers::All, &[7; 32]).await;
    assert!(unknown.into_iter().all(|answer| answer.expect("answered").sets.is_empty()));
    let short = model_sets(&operator, Servers::One(1), &[7; 4]).await.remove(0);
    assert!(short.expect_err("too short").to_string().contains("8 to 32"));
    // Neither clients nor owners are told whose models answered.
    for member in [client, owner] {
        let refused = model_sets(&member.connection(), Servers::One(0), &before).await.remove(0);
        let refused = refused.expect_err("operators only");
        assert!(matches!(refused.refusal(), Some(RpcError::RoleNotAllowed { .. })), "{refused}");
    }
    // The number goes on where it was.
    let world_owner = world.member(Role::Owner, "ward");
    let shared = replace(&world_owner, 2, 6).await.expect("shared again");
    assert!(matches!(shared, Shared::Ready { version: 3, .. }), "{shared:?}");
}

/// A server is killed at some moment of a replacement. Clients are answered as soon as it is back, before
/// the owner does anything, and the owner's next command finishes the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_a_replacement_leaves_a_version_that_votes_and_the_command_finishes_the_job() {
    const CRASHES: usize = 12;
    let mut world = World::start("1000").await;
    let owner = world.member(Role::Owner, "ward");
    let client = world.member(Role::Client, "alice");
    replace(&owner, 0, 6).await.expect("shared");
    let task = client.task(0, "votes").await;
    let mut newest = 1;
    for crash in 0..CRASHES {
        let replacing = {
            let owner = Caller::new(&owner.config);
            tokio::spawn(async move { replace(&owner, crash, 1).await.is_ok() })
        };
        tokio::time::sleep(Duration::from_millis(3 * crash as u64)).await;
        let killed = crash % 3;
        world.cluster.kill_server(killed);
        let before = replacing.await.expect("the task ends");
        world.cluster.start_server(killed).expect("it starts again");
        world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("it joins again");
        let (parts, _) = query(&task, &rows(1)).send_until_answered(&client).await;
        let voted = version_of(&world, &named(&parts)).await;
        assert!(voted >= newest, "version {voted} votes after {newest} did");
        let shared = replace(&owner, crash, 6).await.expect("the command finishes the job");
        let Shared::Ready { version, .. } = shared else { panic!("{shared:?}") };
        let parts = all(query(&task, &rows(1)).send(&client).await);
        newest = version_of(&world, &named(&parts)).await;
        println!("crash {crash} of server {killed}: replaced before {before}, {voted} voted, then {newest}");
        assert_eq!(newest, version);
        for server in 0..3 {
            let models = listed(&owner, server).await;
            let live: Vec<_> =
                models.iter().filter(|model| !model.erased).map(|model| model.version).collect();
            assert_eq!(live, [version], "older versions are erased on server {server}");
        }
    }
}

/// An upload of the next version of `m` whose architecture is changed for some servers.
fn changed(network: &Network, servers: &[usize], change: impl Fn(&mut Architecture)) -> ModelUpload {
    let mut upload = model_upload("votes", "m", network);
    for &server in servers {
        let header = &mut upload.headers[server];
        let mut architecture = Architecture::from_json(&header.architecture).expect("sound");
        change(&mut architecture);
        header.architecture = serde_json::to_vec(&architecture).expect("JSON").into();
    }
    upload
}

async fn refusal_of(upload: &ModelUpload, owner: &Caller, server: usize) -> RpcError {
    for server in 0..3 {
        upload.send_to(owner, server).await.expect("the upload is accepted");
    }
    upload.activate(owner, server).await.expect_err("the self-test rejects it")
}

/// Asserts that the newest version is rejected on all three servers, for this reason. A server that has
/// refused may be ahead of the others by a moment.
async fn assert_rejected(owner: &Caller, needle: &str) {
    for server in 0..3 {
        let mut looks = 0;
        let newest = loop {
            let newest = listed(owner, server).await.pop().expect("a version");
            if newest.state() == ModelState::Rejected || looks == 100 {
                break newest;
            }
            looks += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(newest.state(), ModelState::Rejected, "server {server}: {newest:?}");
        assert!(newest.reason.contains(needle), "{}", newest.reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_its_self_test_is_rejected_by_all_and_its_predecessor_votes_on() {
    let world = World::start("1000").await;
    let owner = world.member(Role::Owner, "ward");
    let client = world.member(Role::Client, "alice");
    replace(&owner, 0, 6).await.expect("shared");
    let task = client.task(0, "votes").await;
    let still_votes = async || {
        let parts = all(query(&task, &rows(1)).send(&client).await);
        assert_eq!(version_of(&world, &named(&parts)).await, 1);
    };
    // Logits of 100, 0 and -100 units whatever the input is: in the eight bits that the architecture states,
    // where 200 is below zero, each of them loses a comparison.
    let scores = Array1::from(vec![100.0, 0.0, -100.0]) / 4096.0;
    let layers = vec![(Array2::zeros((FEATURES, CLASSES)), scores)];
    let network = Network::perceptron(vec![FEATURES], layers).expect("sizes fit");
    let narrow = changed(&network, &[0, 1, 2], |architecture| architecture.final_width = 8);
    for server in [1, 0, 2] {
        let refusal = match server {
            1 => refusal_of(&narrow, &owner, server).await,
            _ => narrow.activate(&owner, server).await.expect_err("it stays rejected"),
        };
        assert_eq!(refusal.reason(), "MODEL_REJECTED", "{refusal}");
        assert!(refusal.to_string().contains("gives a row no vote"), "{refusal}");
    }
    assert_rejected(&owner, "gives a row no vote").await;
    still_votes().await;

    // One server is told another architecture for the same shares: no evaluation begins.
    for server in 0..3 {
        let other = changed(&network, &[server], |architecture| architecture.final_width += 1);
        let refusal = refusal_of(&other, &owner, 2).await;
        assert!(refusal.to_string().contains("different architectures"), "{refusal}");
        assert_rejected(&owner, "different architectures").await;
    }
    still_votes().await;

    // As it states itself the same model is fine.
    let honest = changed(&network, &[], |_| ());
    for server in 0..3 {
        honest.send_to(&owner, server).await.expect("the upload is accepted");
    }
    // One call on any server makes it ready on all three.
    honest.activate(&owner, 2).await.expect("it passes");
    for server in 0..3 {
        // At once where the version is ready, and after the end of the test where it is not yet.
        let ready = honest.activate(&owner, server).await.expect("it is ready");
        assert_eq!(ready.state(), ModelState::Ready, "server {server}: {ready:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_takes_too_long_is_rejected_by_all() {
    let tasks = task_file("votes", "1000");
    let mut world = World::start_with([&tasks, &tasks, &tasks], "[limits]\nself_test_timeout_ms = 1\n").await;
    let owner = world.member(Role::Owner, "ward");
    // Some two hundred rounds, which no machine has within a millisecond.
    let identity = || Array2::from_shape_fn((CLASSES, CLASSES), |(i, j)| f64::from(i == j));
    let mut layers = vec![(Array2::ones((FEATURES, CLASSES)) / 8.0, Array1::zeros(CLASSES))];
    layers.extend((0..30).map(|_| (identity(), Array1::zeros(CLASSES))));
    let network = Network::perceptron(vec![FEATURES], layers).expect("sizes fit");
    let upload = model_upload("votes", "m", &network);
    for server in 0..3 {
        upload.send_to(&owner, server).await.expect("the upload is accepted");
    }
    // The servers give up their links over it, and agree when they have made them anew.
    let mut attempts = 0;
    while listed(&owner, 0).await[0].state() != ModelState::Rejected
        || listed(&owner, 1).await[0].state() != ModelState::Rejected
        || listed(&owner, 2).await[0].state() != ModelState::Rejected
    {
        for server in 0..3 {
            let refusal = upload.activate(&owner, server).await.expect_err("it takes too long");
            let rejected = refusal.reason() == "MODEL_REJECTED";
            assert!(rejected || refusal.retryable(), "{refusal}");
        }
        attempts += 1;
        assert!(attempts < 100, "the servers do not agree");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_rejected(&owner, "self_test_timeout_ms").await;
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("the servers go on");
}
