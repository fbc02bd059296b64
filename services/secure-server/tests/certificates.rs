//! Certificates that are renewed while three real server processes answer.

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use concilium_client_library::operations::{Servers, statuses};
use concilium_client_library::{Connection, ConnectionConfig};
use concilium_rpc::certificates::Authority;
use concilium_rpc::identity::{Identity, Role};
use concilium_rpc::inspection::CertificateInfo;
use concilium_rpc::signature::Authorities;
use concilium_rpc::tls::TlsFiles;
use concilium_rpc::v1::GetStatusResponse;
use support::{Caller, World, all, query, rows, share_model, shifted_network};

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the three servers say of themselves, over new connections.
async fn states(world: &World) -> Vec<GetStatusResponse> {
    let operator = world.member(Role::Operator, "operator");
    let states = statuses(&operator.connection(), Servers::All).await;
    states.into_iter().map(|state| state.expect("a status")).collect()
}

/// Waits until what the servers say passes `test`.
async fn wait_until(world: &World, what: &str, test: impl Fn(&GetStatusResponse) -> bool) {
    let begin = Instant::now();
    while !states(world).await.iter().all(&test) {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn serials(states: &[GetStatusResponse]) -> Vec<String> {
    states.iter().map(|state| state.certificate.clone().expect("a certificate").serial).collect()
}

fn server_files(world: &World, server: usize) -> TlsFiles {
    let folder = world.folder.path().join("certificates");
    TlsFiles {
        ca: folder.join("ca.pem"),
        certificate: folder.join(format!("server-{server}.pem")),
        key: folder.join(format!("server-{server}.key")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_while_queries_run_and_bad_ones_are_refused() {
    let world = World::start("1000").await;
    share_model(&world.member(Role::Owner, "ward"), "m0", &shifted_network(1)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let before = serials(&states(&world).await);

    // One client keeps its connections, and one opens new ones for every query.
    let stop = Arc::new(AtomicBool::new(false));
    let asking = [false, true].map(|anew| {
        let (stop, task, config) = (Arc::clone(&stop), task.clone(), client.config.clone());
        tokio::spawn(async move {
            let mut caller = Caller::new(&config);
            let mut answers = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                if anew {
                    caller = Caller::new(&config);
                }
                all(query(&task, &rows(1)).send(&caller).await);
                answers += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answers
        })
    });

    for server in 0..3 {
        let identity = Identity::server(server).expect("a server");
        let issued = world.cluster.authority().issue(&identity, &[], 300).expect("a certificate");
        issued.save(&world.folder.path().join("certificates")).expect("files are replaced");
    }
    wait_until(&world, "every server uses its new certificate", |state| {
        let certificate = state.certificate.as_ref().expect("a certificate");
        !before.contains(&certificate.serial)
            && certificate.not_after_unix_ms - certificate.not_before_unix_ms > 200 * 86_400_000
            && certificate.problem.is_empty()
    })
    .await;
    let renewed = serials(&states(&world).await);
    // A while longer over the new certificates; a model is compared over them, too.
    share_model(&world.member(Role::Owner, "ward"), "m1", &shifted_network(2)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for task in asking {
        assert!(task.await.expect("no query fails") > 0, "queries ran meanwhile");
    }

    // Another server's certificate and key in server 0's files.
    let (own, other) = (server_files(&world, 0), server_files(&world, 1));
    let aside = (fs::read(&own.certificate).expect("a file"), fs::read(&own.key).expect("a file"));
    fs::copy(&other.key, &own.key).expect("a copy");
    fs::copy(&other.certificate, &own.certificate).expect("a copy");
    wait_until(&world, "server 0 refuses the certificate of server 1", |state| {
        let certificate = state.certificate.as_ref().expect("a certificate");
        state.party != 0 || certificate.problem.contains("is now the certificate of server `server-1`")
    })
    .await;
    assert_eq!(serials(&states(&world).await), renewed, "the one read before stays in use");
    let begin = Instant::now();
    loop {
        let log = fs::read_to_string(world.cluster.log(0)).expect("a log");
        if log.contains("refused; the certificate read before stays in use") {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "the log says nothing: {log}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    fs::write(&own.key, aside.1).expect("a file");
    fs::write(&own.certificate, aside.0).expect("a file");
    wait_until(&world, "the files fit again", |state| {
        state.certificate.as_ref().expect("a certificate").problem.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_replaced_while_the_servers_run() {
    let mut world = World::start("1000").await;
    let mut client = world.member(Role::Client, "alice");
    share_model(&world.member(Role::Owner, "ward"), "m0", &shifted_network(1)).await;
    let task = client.task(0, "votes").await;
    // The client connected when there was the old authority alone; its open connections go on.
    all(query(&task, &rows(1)).send(&client).await);
    let operator = world.cluster.member(Role::Operator, "operator").expect("a certificate");
    let new = Authority::create().expect("an authority");
    let old_pem = world.cluster.authority().certificate_pem().to_owned();
    let ca = server_files(&world, 0).ca;
    let name = CertificateInfo::read(&new.certificate_der()).expect("a certificate").subject;
    let serial = |state: &GetStatusResponse| state.certificate.clone().expect("a certificate").serial;

    // The operator's own files lie elsewhere and trust both throughout.
    let folder = world.folder.path().join("operator");
    fs::create_dir(&folder).expect("a folder");
    let both = format!("{old_pem}{}", new.certificate_pem());
    let tls = TlsFiles { ca: folder.join("both.pem"), ..operator.tls.clone() };
    fs::write(&tls.ca, &both).expect("a file");
    let old_operator = ConnectionConfig { tls, ..operator.clone() };

    // 1. Everybody trusts both. The servers share one file here. For the client it counts with the first
    // receipt that is signed with a new certificate.
    fs::write(&ca, &both).expect("a file");
    client.authorities = Authorities::load(&ca).expect("both authorities");
    // 2. Every server gets a certificate of the new one; only a server that trusts it takes it.
    let before = all_states(&old_operator).await.iter().map(serial).collect::<Vec<_>>();
    for server in 0..3 {
        let identity = Identity::server(server).expect("a server");
        let issued = new.issue(&identity, &[], 60).expect("a certificate");
        issued.replace(&server_files(&world, server.into())).expect("files are replaced");
    }
    let begin = Instant::now();
    loop {
        let states = all_states(&old_operator).await;
        let moved = |state: &GetStatusResponse| {
            state.certificate.as_ref().is_some_and(|certificate| certificate.authority == name)
        };
        if states.iter().all(moved) {
            assert!(states.iter().all(|state| !before.contains(&serial(state))));
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "{states:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    all(query(&task, &rows(1)).send(&client).await);
    // A server that starts again links up with those that have run on.
    world.cluster.kill_server(1);
    world.cluster.start_server(1).expect("it starts");
    wait_for_links(&old_operator).await;

    // 3. The old authority goes; its certificates get nobody in any more.
    fs::write(&ca, new.certificate_pem()).expect("a file");
    let identity = Identity::new(Role::Operator, "operator").expect("an operator");
    let renewed = new.issue(&identity, &[], 60).expect("a certificate").save(&folder).expect("files");
    let new_operator = ConnectionConfig { tls: renewed, ..operator };
    let begin = Instant::now();
    loop {
        let connection = Connection::open(&old_operator).expect("good files");
        let refused = statuses(&connection, Servers::All).await.into_iter().all(|state| {
            state.is_err_and(|error| error.to_string().contains("does not trust the authority"))
        });
        if refused {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "the old authority is trusted still");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    wait_for_links(&new_operator).await;
}

async fn all_states(operator: &ConnectionConfig) -> Vec<GetStatusResponse> {
    let connection = Connection::open(operator).expect("good files");
    let states = statuses(&connection, Servers::All).await;
    states.into_iter().map(|state| state.expect("a status")).collect()
}

/// Waits until every server answers and is connected to both others.
async fn wait_for_links(operator: &ConnectionConfig) {
    let begin = Instant::now();
    loop {
        let connection = Connection::open(operator).expect("good files");
        let states = statuses(&connection, Servers::All).await;
        let linked = |state: &Result<GetStatusResponse, _>| {
            state.as_ref().is_ok_and(|state| state.peers.iter().all(|peer| peer.connected))
        };
        if states.iter().all(linked) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{states:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
