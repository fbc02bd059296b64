//! Faults between an operator's host and three real server processes, each named by `doctor`.

mod support;

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use concilium_client_library::ConnectionConfig;
use concilium_client_library::operations::{Servers, statuses};
use concilium_client_library::terminal::{FailureClass, Output};
use concilium_operator::doctor::{Check, Finding, Level, Report, conclude, examine};
use concilium_privacy::{Clock, ManualClock, SystemClock};
use concilium_rpc::certificates::Authority;
use concilium_rpc::identity::{Identity, Role};
use concilium_rpc::v1::GetStatusResponse;
use support::{World, task_file};

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn run(config: &ConnectionConfig) -> Report {
    examine(config, None, &SystemClock).await
}

fn class(report: &Report) -> Option<FailureClass> {
    let mut printed = Vec::new();
    conclude(report, false, &mut Output::new(&mut printed)).err().map(|failure| failure.class())
}

/// The one fault of a report.
fn only_fault(report: &Report) -> &Finding {
    let mut faults = report.findings().iter().filter(|finding| finding.level == Level::Fault);
    match (faults.next(), faults.next()) {
        (Some(fault), None) => fault,
        _ => panic!("not one fault: {report:#?}"),
    }
}

#[track_caller]
fn assert_fault(fault: &Finding, check: Check, server: Option<u8>, found: &[&str], remedy: &[&str]) {
    assert_eq!((fault.check, fault.server), (check, server), "{fault:#?}");
    for needle in found {
        assert!(fault.found.contains(needle), "found {needle}: {fault:#?}");
    }
    for needle in remedy {
        assert!(fault.remedy.contains(needle), "remedy {needle}: {fault:#?}");
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string()
}

/// The value of a key in the configuration of a server.
fn setting(world: &World, server: usize, key: &str) -> String {
    let text = fs::read_to_string(world.cluster.home(server).join("server.toml")).expect("a configuration");
    let line = text.lines().find(|line| line.starts_with(&format!("{key} ="))).expect("the key");
    line.split('"').nth(1).expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_named_with_its_remedy() {
    let mut world = World::start("10").await;
    let operator = world.cluster.member(Role::Operator, "operator").expect("a certificate");

    let report = run(&operator).await;
    assert!(report.findings().iter().all(|finding| finding.level != Level::Fault), "{report:#?}");
    for check in [
        Check::OwnFiles,
        Check::Name,
        Check::Tls,
        Check::Identity,
        Check::Role,
        Check::Clock,
        Check::Version,
        Check::Peers,
        Check::Policy,
        Check::Ledger,
        Check::RoundTrip,
    ] {
        let good = |finding: &&Finding| finding.check == check && finding.level == Level::Ok;
        assert!(report.findings().iter().any(|finding| good(&finding)), "{check}: {report:#?}");
    }
    assert_eq!(class(&report), None);

    addresses(&world, &operator).await;
    certificates(&world, &operator).await;
    clocks(&operator).await;
    task_files(&world, &operator).await;
    an_expired_server(&world, &operator).await;
    a_server_that_is_down(&mut world, &operator).await;
}

async fn addresses(world: &World, operator: &ConnectionConfig) {
    let with = |server: usize, address: String| {
        let mut config = operator.clone();
        config.servers[server] = address;
        config
    };
    let report = run(&with(1, free_address())).await;
    let fault = only_fault(&report);
    assert_fault(fault, Check::Port, Some(1), &["refused"], &["server 1 runs", "port of `listen`"]);
    assert_eq!(class(&report), Some(FailureClass::Unavailable));

    let report = run(&with(1, setting(world, 1, "peer_listen"))).await;
    assert_fault(only_fault(&report), Check::Port, Some(1), &["server-1 answers"], &["not of `peer_listen`"]);

    let report = run(&with(2, "no-such-host.invalid:7400".to_owned())).await;
    assert_fault(only_fault(&report), Check::Name, Some(2), &["no-such-host.invalid"], &["entry 2", "DNS"]);

    let report = run(&with(0, "nowhere".to_owned())).await;
    assert_fault(only_fault(&report), Check::Address, Some(0), &["host:port"], &["entry 0 of `servers`"]);
    assert_eq!(class(&report), Some(FailureClass::Input));

    let report = run(&with(0, operator.servers[1].clone())).await;
    assert_fault(
        only_fault(&report),
        Check::Identity,
        Some(0),
        &["server `server-1` answers", "where server-0 is expected"],
        &["entry 0 of `servers`", "The address belongs to entry 1"],
    );
    assert_eq!(class(&report), Some(FailureClass::Refused));

    // Something that speaks another protocol.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        if let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n");
            std::thread::sleep(Duration::from_secs(2));
        }
    });
    let report = run(&with(2, address)).await;
    assert_fault(only_fault(&report), Check::Port, Some(2), &["does not speak TLS"], &["port of `listen`"]);
}

async fn certificates(world: &World, operator: &ConnectionConfig) {
    let folder = world.folder.path().join("other");
    let other = Authority::create().expect("an authority");
    let identity = Identity::new(Role::Operator, "operator").expect("an operator");
    let mut files = other.issue(&identity, &[], 60).expect("a certificate").save(&folder).expect("files");

    // Everything of this side is of another consortium.
    let report = run(&ConnectionConfig { tls: files.clone(), ..operator.clone() }).await;
    let faults: Vec<_> = report.findings().iter().filter(|finding| finding.level == Level::Fault).collect();
    assert_eq!(faults.len(), 3, "{report:#?}");
    for (server, fault) in (0..).zip(faults) {
        let found = ["the server's certificate is of `Concilium authority", "ca.pem"];
        assert_fault(fault, Check::Tls, Some(server), &found, &["ca.pem of the servers' consortium"]);
    }

    // This side trusts the servers, but they don't trust it.
    let both = format!("{}{}", other.certificate_pem(), world.cluster.authority().certificate_pem());
    files.ca = folder.join("both.pem");
    fs::write(&files.ca, both).expect("a file");
    let report = run(&ConnectionConfig { tls: files, ..operator.clone() }).await;
    let fault = report.findings().iter().find(|finding| finding.level == Level::Fault).expect("a fault");
    let found = ["does not trust `Concilium authority", "operator-operator.pem"];
    assert_fault(fault, Check::Tls, Some(0), &found, &["that server's `tls.ca`"]);

    // Nobody has listed this operator.
    let mallory = world.cluster.member(Role::Operator, "mallory").expect("a certificate");
    let report = run(&mallory).await;
    let fault = report.findings().iter().find(|finding| finding.level == Level::Fault).expect("a fault");
    let remedy = ["\"mallory\"", "`identities.operators`", "restart"];
    assert_fault(fault, Check::Role, Some(0), &["does not serve operator `mallory`"], &remedy);
    assert_eq!(class(&report), Some(FailureClass::Refused));

    // A client examines what it may.
    let report = run(&world.cluster.member(Role::Client, "alice").expect("a certificate")).await;
    assert!(report.findings().iter().all(|finding| finding.level != Level::Fault), "{report:#?}");
    let limited = |finding: &&Finding| finding.check == Check::Role && finding.level == Level::Warning;
    assert_eq!(report.findings().iter().filter(limited).count(), 3, "{report:#?}");
    let agreed = |finding: &Finding| finding.check == Check::Policy && finding.level == Level::Ok;
    assert!(report.findings().iter().any(agreed), "{report:#?}");

    let mut files = operator.tls.clone();
    files.key = mallory.tls.key;
    let report = run(&ConnectionConfig { tls: files, ..operator.clone() }).await;
    let found = ["operator-mallory.key", "does not belong"];
    assert_fault(only_fault(&report), Check::OwnFiles, None, &found, &["certs show"]);
    assert_eq!(class(&report), Some(FailureClass::Input));

    // Expired, on this side.
    let ended = world.cluster.authority().issue_between(&identity, &[], 1_000_000, 2_000_000);
    let ended = ended.expect("a certificate").save(&folder).expect("files");
    let report = run(&ConnectionConfig { tls: ended, ..operator.clone() }).await;
    assert_fault(only_fault(&report), Check::OwnFiles, None, &["1970-01-24", "renew it"], &["certs show"]);
}

async fn clocks(operator: &ConnectionConfig) {
    const HOUR_MS: u64 = 3_600_000;
    let clock = ManualClock::new(SystemClock.now_ms() - HOUR_MS);
    let report = examine(operator, None, &clock).await;
    let found = ["this machine's clock is", "behind the clocks of all servers"];
    assert_fault(only_fault(&report), Check::Clock, None, &found, &["set this machine's clock", "NTP"]);
    assert_eq!(class(&report), Some(FailureClass::Refused));

    clock.set_ms(SystemClock.now_ms() + 60_000);
    let report = examine(operator, None, &clock).await;
    let told = report.findings().iter().find(|finding| finding.check == Check::Clock).expect("a finding");
    assert_eq!(told.level, Level::Warning, "{told:#?}");
    assert!(told.found.contains("ahead of the clocks of all servers"), "{told:#?}");
}

async fn task_files(world: &World, operator: &ConnectionConfig) {
    let path = world.folder.path().join("tasks.toml");
    fs::write(&path, task_file("votes", "10")).expect("a file");
    let compare = async |path: &Path| examine(operator, Some(path), &SystemClock).await;
    assert_eq!(class(&compare(&path).await), None);

    fs::write(&path, task_file("votes", "10").replace("epoch = 1", "epoch = 2")).expect("a file");
    let report = compare(&path).await;
    let faults: Vec<_> = report.findings().iter().filter(|finding| finding.level == Level::Fault).collect();
    assert_eq!(faults.len(), 3, "{report:#?}");
    let found = ["`tasks.votes.epoch` is 1 on the server and 2 in the task file"];
    assert_fault(faults[1], Check::Policy, Some(1), &found, &["`tasks_file`"]);

    fs::write(&path, "nonsense").expect("a file");
    let report = compare(&path).await;
    assert_fault(only_fault(&report), Check::TaskFile, None, &["tasks.toml"], &["--tasks"]);
    assert_eq!(class(&report), Some(FailureClass::Input));
}

async fn states(operator: &ConnectionConfig) -> Vec<Option<GetStatusResponse>> {
    let connection = concilium_client_library::Connection::open(operator).expect("good files");
    statuses(&connection, Servers::All).await.into_iter().map(Result::ok).collect()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64
}

async fn an_expired_server(world: &World, operator: &ConnectionConfig) {
    // Long enough for the server to notice it on a loaded machine; a server does not start, and does
    // not change to, an expired one.
    let identity = Identity::server(1).expect("a server");
    let certificates = world.folder.path().join("certificates");
    let begin = Instant::now();
    let ends = loop {
        let ends = now() + 15;
        let issued = world.cluster.authority().issue_between(&identity, &[], now() - 60, ends);
        issued.expect("a certificate").save(&certificates).expect("files");
        let taken = loop {
            let state = states(operator).await.swap_remove(1);
            let end =
                state.and_then(|state| state.certificate).map(|certificate| certificate.not_after_unix_ms);
            if end == Some(ends * 1000) || now() > ends {
                break end == Some(ends * 1000);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        if taken {
            break ends;
        }
        assert!(begin.elapsed() < PATIENCE, "the server does not take its new certificate");
    };
    while now() <= ends + 1 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let report = run(operator).await;
    // The links to the other servers were opened with the certificate before, which lasts.
    let found = ["the server's certificate expired at"];
    assert_fault(only_fault(&report), Check::Expiry, Some(1), &found, &["certs renew", "no restart"]);

    // Renewed, everything comes back without a restart.
    let issued = world.cluster.authority().issue(&identity, &[], 60).expect("a certificate");
    issued.save(&certificates).expect("files");
    wait_for(operator, "the server comes back", |report| class(report).is_none()).await;
}

async fn a_server_that_is_down(world: &mut World, operator: &ConnectionConfig) {
    world.cluster.kill_server(2);
    let lost = |report: &Report| {
        report.findings().iter().filter(|finding| finding.level == Level::Fault).count() == 3
    };
    let report = wait_for(operator, "both others miss server 2", lost).await;
    let faults: Vec<_> = report.findings().iter().filter(|finding| finding.level == Level::Fault).collect();
    assert_fault(faults[0], Check::Port, Some(2), &["refused"], &["server 2 runs"]);
    assert_fault(
        faults[1],
        Check::Peers,
        Some(0),
        &["no link to server 2"],
        &["server 2 runs", "peer_listen"],
    );
    assert_fault(faults[2], Check::Peers, Some(1), &["no link to server 2"], &["server 2 runs"]);
    assert_eq!(class(&report), Some(FailureClass::Unavailable));
}

/// Runs `doctor` until what it reports passes `test`.
async fn wait_for(operator: &ConnectionConfig, what: &str, test: impl Fn(&Report) -> bool) -> Report {
    let begin = Instant::now();
    loop {
        let report = run(operator).await;
        if test(&report) {
            return report;
        }
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}: {report:#?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_with_another_task_file_is_named_by_key() {
    let tasks = task_file("votes", "10");
    let other = tasks.replace("sigma = 2", "sigma = 3");
    let world = World::start_with([&tasks, &other, &tasks], "").await;
    let operator = world.cluster.member(Role::Operator, "operator").expect("a certificate");
    let report = run(&operator).await;
    assert_fault(
        only_fault(&report),
        Check::Policy,
        Some(1),
        &["`tasks.votes.sigma` differs", "server 0 has 2, server 1 has 3, server 2 has 2"],
        &["server 1 is the odd one out", "restart"],
    );
}
