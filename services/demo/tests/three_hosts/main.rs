//! docs/deploying.md, run as it is written: every host of the document is a set of Linux namespaces with
//! an address, a firewall, files and processes of its own. Only `scp`, which needs another host, and
//! `systemctl`, which needs the system's first process, are stand-ins.
#![cfg(target_os = "linux")]

#[path = "../documents/mod.rs"]
mod documents;
mod hosts;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::process::Command;

use documents::{blocks, programs, read, root, skip};
use hosts::{Network, missing};
use serde_json::Value;

/// The hosts of the document with their addresses.
const HOSTS: [(&str, &str); 6] = [
    ("authority", "192.0.2.5"),
    ("server-0", "192.0.2.10"),
    ("server-1", "192.0.2.11"),
    ("server-2", "192.0.2.12"),
    ("ward", "192.0.2.20"),
    ("desk", "192.0.2.30"),
];

const SERVERS: [&str; 3] = ["server-0", "server-1", "server-2"];

/// The programs that the document calls.
const PROGRAMS: [&str; 4] = ["concilium-server", "concilium-owner", "concilium-client", "concilium-operator"];

fn document() -> String {
    read(&root().join("docs/deploying.md"))
}

#[test]
fn the_three_host_document_works_as_written() {
    if let Some(reason) = missing() {
        skip("the_three_host_document_works_as_written", reason);
        return;
    }
    let built = programs(&PROGRAMS);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let paths = PROGRAMS.map(|program| built.join(program));
    let mut network = Network::new(folder.path(), &HOSTS, &paths);
    for host in ["ward", "desk"] {
        let link = network.host(host).path("~/examples");
        symlink(root().join("examples"), link).expect("a link to the examples");
    }

    for block in blocks(&document()) {
        for place in &block.places {
            let succeeded = network.host(place).run(&block.commands);
            assert!(succeeded, "line {} fails on {place}\n{}", block.line, network.told());
        }
    }

    owner_and_client_are_served(&mut network);
    servers_are_confined(&mut network);
    restarts_heal(&mut network);
    a_cut_cable_is_noticed_and_heals(&mut network);
}

/// What the document lets the owner, the client and the operators see.
fn owner_and_client_are_served(network: &mut Network) {
    let ward = network.host("ward").told();
    assert!(ward.contains("owner-00 is ready on all three servers"), "{ward}");
    let desk = network.host("desk");
    let answers: Value =
        serde_json::from_str(&read(&desk.path("~/answers.json"))).expect("the answers are JSON");
    assert_eq!(answers["labels"].as_array().map(Vec::len), Some(5), "{answers}");
    // Five rows at sigma 5, each 1 / 25 and one unit for the rounding up.
    assert_eq!(answers["charged_rho"], "0.200000005");
    // An operator of one server is shown the same by all three, and the restart has forgotten nothing.
    for host in ["server-0", "server-1"] {
        let told = network.host(host).told();
        let budgets = told.lines().filter(|line| line.starts_with("digits  "));
        let spent = budgets.filter(|line| line.split_whitespace().nth(2) == Some("0.200000005")).count();
        assert_eq!(spent, 3, "{told}");
    }
}

/// The firewall and the files are as the document promises.
fn servers_are_confined(network: &mut Network) {
    let reach =
        |address: &str, port: u16| format!("timeout 3 bash -c '< /dev/tcp/{address}/{port}' 2> /dev/null");
    for host in ["ward", "desk"] {
        for (_, address) in HOSTS.iter().filter(|(name, _)| SERVERS.contains(name)) {
            let (open, closed) = (reach(address, 7400), reach(address, 7410));
            let probe = format!("{open}\nif {closed}; then exit 1; fi\n");
            let held = network.host(host).run(&probe);
            assert!(
                held,
                "{host} can reach the peer port of {address}, or not port 7400\n{}",
                network.told()
            );
        }
    }
    for server in SERVERS {
        // The peer port is open to the other servers, and the process owns nothing else.
        let probe = format!(
            "{}\n[ \"$(ps -o user= -C concilium-server)\" = conciliu+ ] || [ \"$(stat -c %U /proc/$(cat $HOST/run/concilium-server.pid))\" = concilium ]\n",
            reach("server-0.example.org", 7410)
        );
        let host = network.host(server);
        assert!(host.run(&probe), "{}", host.told());
        let key = host.path(&format!("/etc/concilium/certificates/{server}.key"));
        let metadata = fs::metadata(key).expect("the key of the server");
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert_ne!(metadata.uid(), 0, "the key belongs to root");
    }
    // What the document says about keys on the authority's host.
    let issued = network.host("authority").path("~/issued");
    let keys = Command::new("find").arg(&issued).args(["-name", "*.key"]).output().expect("find runs");
    assert!(issued.is_dir() && keys.stdout.is_empty(), "{}", String::from_utf8_lossy(&keys.stdout));
}

/// Whichever server is stopped, all three find together again. Two restarts each: a server that loses
/// its links drops both, and the three must not go on chasing each other around the ring.
fn restarts_heal(network: &mut Network) {
    let restart = "systemctl restart concilium-server\n\
                   until concilium-server health --config /etc/concilium/server.toml; do sleep 0.2; done\n";
    for server in SERVERS.iter().chain(&SERVERS) {
        let healthy = network.host(server).run(restart);
        assert!(healthy, "{server} was started again and finds no way to the others\n{}", network.told());
    }
}

/// A lost network is an error that may be repeated, and passes without anybody's help.
fn a_cut_cable_is_noticed_and_heals(network: &mut Network) {
    network.connect("server-2", false);
    let ask = "concilium-client predict --task digits --input examples/digits/test_inputs.npy --rows 5..6";
    let desk = network.host("desk");
    let probe = format!("code=0\nCONCILIUM_CONNECT_TIMEOUT_MS=2000 {ask} || code=$?\n[ $code = 4 ]\n");
    assert!(desk.run(&probe), "a server that cannot be reached is not exit code 4\n{}", desk.told());
    network.connect("server-2", true);
    let desk = network.host("desk");
    let probe = format!("for i in 1 2 3 4 5 6 7 8 9; do {ask} && break; sleep 2; done\n{ask}\n");
    assert!(desk.run(&probe), "the network came back, but no answer\n{}", network.told());
}

#[test]
fn every_command_of_the_document_is_run_or_says_why_not() {
    let document = document();
    let marked: usize = blocks(&document).len();
    assert!(marked > 10, "{marked} marked blocks");
    let lines: Vec<&str> = document.lines().collect();
    for (number, pair) in lines.windows(2).enumerate().filter(|(_, pair)| pair[1].starts_with("```sh")) {
        let explained = pair[0].ends_with(": begin -->") || pair[0].starts_with("<!-- not run: ");
        assert!(
            explained,
            "docs/deploying.md, line {}: the block is neither marked nor explained",
            number + 2
        );
    }
}
