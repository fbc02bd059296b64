//! Spans of real queries arrive at a collector, and a collector that is away holds nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use concilium_rpc::identity::Role;

use crate::collector::{Collector, text};
use crate::support::{World, all, query, rows, share_model, shifted_network, task_file};

#[tokio::test(flavor = "multi_thread")]
async fn spans_of_a_query_meet_in_one_trace_and_the_collector_may_go() {
    let collector = Collector::start();
    let tasks = task_file("votes", "1000");
    let extra = format!("[observability]\notlp_endpoint = \"{}\"\n", collector.endpoint());
    let world = World::start_with([&tasks, &tasks, &tasks], &extra).await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m", &shifted_network(1)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let asked = query(&task, &rows(2));
    all(asked.send(&client).await);

    // Servers send once a second. Waiting is bounded by the test's patience alone.
    let steps = ["plan", "noise-pool", "linear", "comparison", "selection", "votes", "noise"];
    let steps: BTreeSet<_> = steps.into_iter().chain(["ledger-commit", "barrier", "release"]).collect();
    let mut by_server: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for attempt in 0.. {
        by_server.clear();
        for (instance, span) in collector.spans() {
            by_server.entry(instance).or_default().push(span);
        }
        let complete = |spans: &Vec<opentelemetry_proto::tonic::trace::v1::Span>| {
            spans.iter().any(|span| span.name == "batch") && spans.iter().any(|span| span.name == "Predict")
        };
        if by_server.len() == 3 && by_server.values().all(complete) {
            break;
        }
        assert!(attempt < 300, "spans are missing: {by_server:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut traces = BTreeSet::new();
    for (server, spans) in &by_server {
        let batch = spans.iter().find(|span| span.name == "batch").expect("looked for above");
        assert_eq!(text(&batch.attributes, "task").as_deref(), Some("votes"), "{server}");
        // The first session was the model's self-test, which has a span of its own.
        assert_eq!(text(&batch.attributes, "session").as_deref(), Some("2"), "{server}");
        traces.insert(batch.trace_id.clone());
        let inside: Vec<_> = spans.iter().filter(|span| span.parent_span_id == batch.span_id).collect();
        let names: BTreeSet<_> = inside.iter().map(|span| span.name.as_str()).collect();
        assert!(names.is_superset(&steps), "{server}: {names:?}");
        let layers = inside.iter().filter(|span| span.name == "linear");
        let layers: BTreeSet<_> = layers.filter_map(|span| text(&span.attributes, "layer")).collect();
        assert_eq!(layers, BTreeSet::from(["1".to_owned(), "2".to_owned()]), "{server}");
        let call = spans.iter().find(|span| span.name == "Predict").expect("looked for above");
        let attribute = |key| text(&call.attributes, key).unwrap_or_default();
        assert_eq!(attribute("task"), "votes");
        assert_eq!(attribute("caller"), "client `alice`");
        let request: String = asked.headers[0].request_id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(attribute("request"), request);
    }
    assert_eq!(traces.len(), 1, "the three servers' batch is one trace");

    drop(collector);
    let log = |server| std::fs::read_to_string(world.cluster.log(server)).expect("a log");
    let told = || log(0).matches("the collector does not take spans").count();
    for attempt in 0.. {
        all(query(&task, &rows(1)).send(&client).await);
        if told() > 0 {
            break;
        }
        assert!(attempt < 600, "the loss of the collector is not told: {}", log(0));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // It is told once, and queries go on.
    for _ in 0..30 {
        all(query(&task, &rows(1)).send(&client).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(told(), 1, "{}", log(0));
}
