//! The measuring instrument on tiny sizes: what it tells is what was done, and nothing is left behind.

use std::fs;

use concilium_server::config::TaskFile;
use serde_json::Value;

use super::support::{Demo, examples};

/// Three owners of a small network; two rows in each request.
const SMALL: &str = "bench --network mlp:12-7-3 --owners 3 --batch 2 --repeat 3 --seed 5";

fn three(json: &Value, key: &str) -> [u64; 3] {
    serde_json::from_value(json[key].clone()).unwrap_or_else(|error| panic!("{key}: {error}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Every promised field is there, and its value can be true.
fn check(json: &Value) {
    for key in ["server_ms", "client_ms"] {
        let [min, p50, p95] = ["min", "p50", "p95"].map(|name| number(&json[key][name]));
        assert!(0.0 < min && min <= p50 && p50 <= p95, "{key}: {min} {p50} {p95}");
    }
    assert!(number(&json["client_ms"]["min"]) >= number(&json["server_ms"]["min"]));
    let queries = ["clients", "repeat", "batch"].map(|key| number(&json[key])).iter().product::<f64>();
    let elapsed_ms = 1e3 * queries / number(&json["queries_per_second"]);
    assert!(elapsed_ms >= number(&json["repeat"]) * number(&json["client_ms"]["min"]) * 0.999);
    for key in ["bytes_per_party", "messages_per_party", "peak_rss_bytes"] {
        assert!(three(json, key).iter().all(|&value| value > 0), "{key}: {}", json[key]);
    }
    // The phases of a batch follow each other, those of the last one may end after its answer. Of several
    // clients a server has four batches at a time at most: one that is agreed on, two on the lanes, and one that waits
    // until the others have charged.
    let batches = number(&json["batches"]);
    let beside = if number(&json["clients"]) > 1.0 { 4.0 } else { 1.0 };
    for server in json["phases_ms"].as_array().unwrap() {
        let phases = ["preparation", "linear", "comparison", "opening", "ledger", "waiting"];
        let sum: f64 = phases.iter().map(|phase| number(&server[phase])).sum();
        let longest = beside * elapsed_ms;
        assert!(0.0 < sum && sum * (batches - 1.0) <= longest, "{sum} x {batches} in {elapsed_ms} ms");
        for phase in ["linear", "comparison", "waiting"] {
            assert!(number(&server[phase]) > 0.0, "{phase} of {server}");
        }
        assert_eq!(number(&server["ledger"]) > 0.0, json["transport"] == "tls", "{server}");
    }
    for key in ["import_ms", "sharing_ms"] {
        assert!(number(&json["once_per_model"][key]) > 0.0, "{key}");
    }
    assert!(json["machine"]["cores"].as_u64().unwrap() > 0);
}

#[test]
fn both_transports_tell_the_same_traffic_and_all_figures() {
    let demo = Demo::new();
    for release in ["histogram", "label"] {
        let measure =
            |transport: &str| demo.report(&format!("{SMALL} --release {release} --transport {transport}"));
        let (memory, tls) = (measure("memory"), measure("tls"));
        for json in [&memory, &tls] {
            check(json);
            for (key, expected) in [("owners", 3), ("batch", 2), ("repeat", 3), ("seed", 5), ("batches", 3)] {
                assert_eq!(json[key], expected, "{key}");
            }
            assert_eq!((&json["network"], &json["release"]), (&"mlp:12-7-3".into(), &release.into()));
            assert_eq!(json["parameters"], 12 * 7 + 7 + 7 * 3 + 3);
            assert!(json["bandwidth_mbit"].is_null() && json["delay_ms"] == 0.0);
        }
        assert_eq!((&memory["ledger"], &tls["ledger"]), (&false.into(), &true.into()));
        for key in ["rounds", "bytes_per_party", "messages_per_party"] {
            assert_eq!(memory[key], tls[key], "{key}");
        }
        // Every server sends at least one element for each result of a layer, and for each noised count.
        let elements = 2 * (3 * (7 + 3) + 3);
        assert!(three(&tls, "bytes_per_party").iter().all(|&bytes| bytes >= 8 * elements), "{tls}");
        assert!(tls["rounds"].as_u64().unwrap() >= 5);
    }
    demo.check_nothing_is_left();
}

#[test]
fn the_ring_of_32_bits_is_measured_beside_that_of_64() {
    let demo = Demo::new();
    for transport in ["memory", "tls"] {
        let measure = |ring: u32| demo.report(&format!("{SMALL} --ring {ring} --transport {transport}"));
        let (wide, narrow) = (measure(64), measure(32));
        check(&narrow);
        assert_eq!((&wide["ring_bits"], &narrow["ring_bits"]), (&64.into(), &32.into()));
        assert!(narrow["rounds"].as_u64() <= wide["rounds"].as_u64(), "{narrow}");
        let sent = |json: &Value| three(json, "bytes_per_party").iter().sum::<u64>();
        assert!(sent(&narrow) < sent(&wide), "{narrow}");
        if transport == "memory" {
            let bytes = |json: &Value| json["once_per_model"]["model_bytes"].as_u64().unwrap();
            assert!(bytes(&narrow) < bytes(&wide), "{narrow}");
        }
    }
    let refused = demo.run(&format!("{SMALL} --ring 48"));
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(message.contains("a ring of 48 bits is not supported; choose 64, or 32"), "{message}");
    demo.check_nothing_is_left();
}

#[test]
fn rounds_do_not_depend_on_owners_or_batch() {
    let demo = Demo::new();
    // The same file for all owners: the widest comparison window is that of one.
    let network = examples().join("owner_00.onnx");
    let rounds = |owners: usize, batch: usize| {
        let line = format!(
            "bench --network {} --owners {owners} --batch {batch} --transport memory --repeat 1 --seed 1",
            network.display()
        );
        demo.report(&line)["rounds"].as_u64().unwrap()
    };
    let one = rounds(1, 1);
    assert!(one > 0);
    for (owners, batch) in [(50, 1), (250, 1), (1, 128), (50, 128)] {
        assert_eq!(rounds(owners, batch), one, "{owners} owners, {batch} rows");
    }
}

#[test]
fn no_server_sends_more_than_the_best_of_the_other_systems() {
    // MP-SPDZ with its replicated ring, in bytes for each party: docs/performance.md has the table.
    let theirs = [
        ("--network mlp:784-128-128-10", 10_000),
        ("--network mlp:784-128-128-10 --owners 50", 600_000),
        ("--network lenet --batch 32", 23_000_000),
    ];
    let demo = Demo::new();
    for (line, most) in theirs {
        let json = demo.report(&format!("bench {line} --transport memory --repeat 1 --seed 1"));
        let bytes: Vec<u64> = serde_json::from_value(json["bytes_per_party"].clone()).unwrap();
        assert_eq!(bytes.len(), 3);
        assert!(bytes.iter().all(|&bytes| 0 < bytes && bytes <= most), "{line}: {bytes:?} of {most}");
    }
}

#[test]
fn logits_are_measured_in_memory_and_refused_for_servers() {
    let demo = Demo::new();
    let logits = demo.report(&format!("{SMALL} --release logits --transport memory"));
    check(&logits);
    let votes = demo.report(&format!("{SMALL} --transport memory"));
    assert!(logits["rounds"].as_u64() < votes["rounds"].as_u64());
    let refused = demo.run(&format!("{SMALL} --release logits --transport tls"));
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{message}");
    for part in ["--transport memory", "no opening in a server", "--release histogram"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(refused.stdout.is_empty());
    demo.check_nothing_is_left();

    // Nor can a server be configured to do it.
    let task = |release: &str| {
        format!(
            "[tasks.bench]\nepoch = 1\ninput_shape = [4]\ninput_minimum = 0.0\ninput_maximum = 1.0\n\
             fractional_bits = 12\nclasses = 3\nrelease = \"{release}\"\nsigma = 5\nbudget_rho = 1\ndelta = 1e-5\n"
        )
    };
    assert!(TaskFile::parse(&task("histogram"), "tasks.toml".as_ref()).is_ok());
    let error = TaskFile::parse(&task("logits"), "tasks.toml".as_ref()).unwrap_err().to_string();
    assert!(error.contains("logits") && error.contains("label or histogram"), "{error}");
}

#[test]
fn clients_that_ask_at_the_same_time_share_batches() {
    let demo = Demo::new();
    let json = demo.report("bench --network mlp:12-7-3 --clients 6 --repeat 5 --seed 5");
    check(&json);
    let batches = json["batches"].as_u64().unwrap();
    assert!((5..30).contains(&batches), "{batches} batches for 30 requests");
    demo.check_nothing_is_left();
}

#[test]
fn slow_links_delay_every_round() {
    let demo = Demo::new();
    let delay = 10.0;
    for transport in ["memory", "tls"] {
        let json =
            demo.report(&format!("{SMALL} --transport {transport} --delay-ms {delay} --bandwidth-mbit 50"));
        check(&json);
        // What a sleep guarantees, not how quick anything is.
        let least = delay * number(&json["rounds"]);
        assert!(number(&json["server_ms"]["min"]) >= least, "{transport}: {} of {least}", json["server_ms"]);
        assert_eq!((number(&json["delay_ms"]), number(&json["bandwidth_mbit"])), (delay, 50.0));
    }
    demo.check_nothing_is_left();
}

#[test]
fn what_cannot_be_measured_is_refused_before_a_server_starts() {
    let demo = Demo::new();
    let damaged = demo.folder().join("damaged.onnx");
    fs::write(&damaged, b"no model").unwrap();
    for (line, told) in [
        ("--owners 0".to_owned(), "limit is 1 to 1000"),
        ("--owners 1001".to_owned(), "limit is 1 to 1000"),
        ("--batch 5000".to_owned(), "limit is 1 to 4096"),
        ("--repeat 0".to_owned(), "limit is 1 to 100000"),
        ("--clients 1000".to_owned(), "limit is 1 to 256"),
        ("--clients 2 --transport memory".to_owned(), "--transport tls"),
        ("--delay-ms 60000".to_owned(), "limit is 0 to 5000"),
        ("--bandwidth-mbit 0".to_owned(), "limit is 0.1 to 100000"),
        ("--network resnet".to_owned(), "mlp:784-128-128-10, lenet"),
        ("--network mlp:10-1".to_owned(), "limit is 2 to 64"),
        ("--network mlp:65536-65536-10".to_owned(), "limit is 67108864"),
        ("--network mlp:60000-1000-10 --owners 1000".to_owned(), "fewer --owners"),
        ("--network absent.onnx".to_owned(), "absent.onnx"),
        (format!("--network {}", damaged.display()), "damaged.onnx"),
        ("--tables links --owners 3".to_owned(), "--owners"),
    ] {
        let output = demo.run(&format!("bench {line}"));
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {message}");
        assert!(message.contains(told), "{line}: {message}");
        assert!(output.stdout.is_empty() && !message.contains("warming up"), "{line}: {message}");
    }
    demo.check_nothing_is_left();
}

#[test]
fn the_report_and_the_help_say_what_was_measured() {
    let demo = Demo::new();
    let output = demo.run(&format!("{SMALL} --transport memory"));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "mlp:12-7-3",
        "3 owners",
        "2 rows",
        "histogram released",
        "memory",
        "seed 5",
        "no ledgers",
        "p95",
        "rounds",
        "messages sent",
        "peak memory",
        "comparison",
        "waiting",
        "once for each model",
        "queries per second",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let help = String::from_utf8(demo.run("bench --help").stdout).unwrap();
    for part in
        ["Examples:", "--owners 50 --clients 32", "server_ms", "--tables all", "no way to open a value"]
    {
        assert!(help.contains(part), "{part} in\n{help}");
    }
}
