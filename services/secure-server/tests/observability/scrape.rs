//! What a scraper reads from real servers is what `docs/metrics.md` describes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use concilium_rpc::identity::Role;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{World, all, query, rows, share_model, shifted_network};

/// What one server serves at a path of its page.
pub(crate) async fn get(world: &World, server: usize, path: &str) -> String {
    let address = world.cluster.web_address(server);
    let mut stream = TcpStream::connect(address).await.expect("the page is served");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

/// Name and labels of one measurement.
type Series = (String, BTreeMap<String, String>);

/// Every measurement with its labels.
fn parse(text: &str) -> BTreeMap<Series, f64> {
    let lines = text.lines().filter(|line| line.starts_with("concilium_"));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            let labels = labels.map(|label| {
                let (key, value) = label.split_once('=').expect("a label");
                (key.to_owned(), value.trim_matches('"').to_owned())
            });
            ((name.to_owned(), labels.collect()), value.parse().expect("a number"))
        })
        .collect()
}

/// Type and labels of the documented measurements.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("the document is there");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.split(" | ").collect();
        let labels = cells[3].split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.trim().is_empty()).collect();
        (cells[0].trim_end_matches('`').to_owned(), (cells[1].to_owned(), labels))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn scraped_measurements_are_the_documented_ones() {
    let world = World::start("10").await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(1)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let asked = query(&task, &rows(2));
    all(asked.send(&client).await);
    all(asked.send(&client).await);
    let mut unknown = query(&task, &rows(1));
    unknown.headers.iter_mut().for_each(|header| header.task = "nonsense".to_owned());
    assert!(unknown.send(&client).await.iter().all(Result::is_err));
    let documented = documented();
    for server in 0..3 {
        // A released batch is counted after its answers have left.
        let released = r#"concilium_batches_total{task="votes",outcome="released"} 1"#;
        let mut text = get(&world, server, "/metrics").await;
        for attempt in 0.. {
            if text.contains(released) {
                break;
            }
            assert!(attempt < 100, "{text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            text = get(&world, server, "/metrics").await;
        }
        let measured = parse(&text);
        for (name, labels) in measured.keys() {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                let base = name.strip_suffix(end)?;
                documented.get(base).is_some_and(|(kind, _)| kind == "histogram").then_some(base)
            });
            let base = base.unwrap_or(name);
            let (_, expected) = documented.get(base).unwrap_or_else(|| panic!("{name} is not documented"));
            let found: BTreeSet<_> = labels.keys().filter(|label| *label != "le").cloned().collect();
            assert_eq!(&found, expected, "labels of {name}");
        }
        let value = |name: &str, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            let series = (format!("concilium_{name}"), labels.collect());
            *measured.get(&series).unwrap_or_else(|| panic!("{series:?} is missing: {text}"))
        };
        let votes = ("task", "votes");
        let outcome = |outcome| value("requests_total", &[votes, ("outcome", outcome)]);
        assert_eq!((outcome("answered"), outcome("replayed")), (1.0, 1.0));
        // A task that nobody serves is no label.
        assert_eq!(value("requests_total", &[("task", ""), ("outcome", "UNKNOWN_TASK")]), 1.0);
        assert_eq!(value("calls_total", &[("method", "Predict"), ("code", "OK")]), 2.0);
        assert_eq!(value("calls_total", &[("method", "Predict"), ("code", "NOT_FOUND")]), 1.0);
        assert_eq!(value("batch_rows_sum", &[votes]), 2.0);
        assert!(value("rounds_total", &[votes]) > 1.0);
        // Two layers in the model's self-test and two in the batch.
        assert_eq!(value("step_duration_seconds_count", &[("step", "linear")]), 4.0);
        assert_eq!(value("step_duration_seconds_count", &[("step", "barrier")]), 1.0);
        assert_eq!(value("models", &[votes, ("state", "ready")]), 1.0);
        assert_eq!(value("owners_ready", &[votes]), 1.0);
        // A charge and its delivery, and the heads of the others that each new connection brings.
        assert!(value("ledger_entries", &[]) >= 2.0);
        assert_eq!(value("budget_cap_rho", &[votes]), 10.0);
        assert!((value("budget_spent_rho", &[votes]) - 0.500_000_042).abs() < 1e-9);
        assert!((value("budget_client_spent_max_rho", &[votes]) - 0.500_000_042).abs() < 1e-9);
        assert!(value("noise_rows_ready", &[votes]) >= 1.0);
        assert!(value("uptime_seconds", &[]) > 0.0);
        for peer in ["0", "1", "2"].into_iter().filter(|peer| *peer != server.to_string()) {
            assert_eq!(value("peer_connected", &[("peer", peer)]), 1.0);
            assert!(value("sent_bytes_total", &[("peer", peer)]) > 0.0);
        }
        let server = server.to_string();
        assert_eq!(value("build_info", &[("server", &server), ("version", env!("CARGO_PKG_VERSION"))]), 1.0);
        // What has not happened yet has no series; everything else that is documented has.
        let silent = [
            "budget_client_cap_rho",
            "stalls_total",
            "peer_connection_failures_total",
            "ledger_raises_total",
        ];
        for name in documented.keys() {
            let short = name.trim_start_matches("concilium_");
            let seen = measured.keys().any(|(series, _)| series.starts_with(name.as_str()));
            assert!(seen || silent.contains(&short), "{name} is not measured");
        }
    }
}
