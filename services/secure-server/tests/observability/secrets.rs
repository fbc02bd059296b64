//! No secret is in anything that a server tells: logs at the finest level, traces, status, page and
//! measurements.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use concilium_client_library::budget::budgets;
use concilium_client_library::operations::{Servers, log_filters, statuses};
use concilium_inference::flatten;
use concilium_mpc::input::Component;
use concilium_network::{Network, quantise};
use concilium_privacy::Mechanism;
use concilium_ring::{Element as _, Z64};
use concilium_rpc::identity::Role;
use concilium_rpc::v1;
use ndarray::{Array1, Array2};
use prost::Message as _;

use crate::collector::Collector;
use crate::needles::Needles;
use crate::scrape::get;
use crate::support::known_noise::{known, program, serve_if_asked};
use crate::support::{
    CLASSES, FEATURES, FRACTIONAL_BITS, World, all, domain, model_upload, open, query, task_file,
};

/// The widest noise that policy allows.
const WIDEST_SIGMA: &str = "1048576";
/// Rows of noise that are looked for.
const NOISE_ROWS: u64 = 64;

/// Values of six digits that nothing else prints.
fn value(index: usize) -> f64 {
    let digits = (index as u64 * 271_829 + 314_159) % 900_000 + 50_000;
    let sign = if index.is_multiple_of(2) { 1.0 } else { -1.0 };
    sign * digits as f64 / 1e6
}

fn secret_network() -> Network {
    let weights =
        |rows: usize, first: usize| Array2::from_shape_fn((rows, CLASSES), |(i, j)| value(first + 3 * i + j));
    let bias = |first: usize| Array1::from_shape_fn(CLASSES, |j| value(first + j));
    let layers = vec![(weights(FEATURES, 100), bias(200)), (weights(CLASSES, 300), bias(400))];
    Network::perceptron(vec![FEATURES], layers).expect("sizes fit")
}

/// One component as it was sent and as it is expanded.
fn component(needles: &mut Needles, name: &str, sent: &Option<v1::Component>, data: &[Bytes], count: usize) {
    let component = match sent.as_ref().and_then(|sent| sent.kind.as_ref()) {
        Some(v1::component::Kind::Seed(seed)) => {
            needles.random_bytes(&format!("seed of {name}"), seed);
            Component::Seed(seed.as_ref().try_into().expect("32 bytes"))
        }
        _ => Component::Data(data.concat()),
    };
    let elements: Vec<Z64> = component.expand(count).expect("as many as were dealt");
    let bytes: Vec<u8> = elements.iter().flat_map(|element| element.to_unsigned().to_le_bytes()).collect();
    needles.random_bytes(&format!("share of {name}"), &bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_server_tells_holds_a_secret() {
    serve_if_asked().await;
    let collector = Collector::start();
    // Noise of so many digits that its values do not turn up by chance.
    let widest = format!("sigma = {WIDEST_SIGMA}\n");
    let tasks = task_file("votes", "1000").replace("sigma = 2\n", &widest);
    let extra = format!(
        "[observability]\nlog_filter = \"trace\"\notlp_endpoint = \"{}\"\nstall_warning_ms = 10\n",
        collector.endpoint()
    );
    let program = program("secrets::nothing_that_a_server_tells_holds_a_secret");
    let world = World::start_program(program, [&tasks, &tasks, &tasks], &extra).await;
    let mut needles = Needles::default();
    let mechanism = Mechanism::DiscreteGaussian { sigma: WIDEST_SIGMA.parse().expect("a number") };
    for server in 0..3 {
        // All that is drawn ahead, of which the queries below use some.
        for row in 0..NOISE_ROWS {
            let noise = known(server, mechanism, row, CLASSES);
            needles.numbers(&format!("noise of server {server}"), &noise);
        }
    }
    for server in 0..3 {
        let path = world.folder.path().join(format!("certificates/server-{server}.key"));
        let pem = std::fs::read_to_string(path).expect("a key file");
        needles.key_file(&format!("the key of server {server}"), &pem);
    }

    // A model with known weights.
    let owner = world.member(Role::Owner, "ward");
    let network = secret_network();
    let upload = model_upload("votes", "m", &network);
    let fixed = quantise(&network, &domain(), FRACTIONAL_BITS).expect("headroom is left");
    let encoded: Vec<i64> = flatten::<Z64>(&fixed).iter().map(|element| element.to_signed()).collect();
    for weights in network.steps().iter().filter_map(|step| step.weights.as_ref()) {
        let values: Vec<f64> = weights.matrices.iter().chain(&weights.bias).copied().collect();
        needles.values("weights", &values, &encoded);
    }
    encoded.chunks(4).filter(|row| row.len() == 4).for_each(|row| needles.values("weights", &[], row));
    for (header, data) in upload.headers.iter().zip(&upload.chunks) {
        component(&mut needles, "the model", &header.own, data, encoded.len());
        component(&mut needles, "the model", &header.next, data, encoded.len());
    }
    for server in 0..3 {
        upload.send_to(&owner, server).await.expect("the upload is accepted");
    }
    for server in 0..3 {
        upload.activate(&owner, server).await.expect("the model is activated");
    }

    // Queries with known inputs: one that is answered, its repeat, and two that are refused.
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    let inputs = Array2::from_shape_fn((2, FEATURES), |(row, feature)| value(10 * row + feature));
    let asked = query(&task, &inputs);
    let rows = domain().encode(inputs.view(), FRACTIONAL_BITS).expect("inputs lie in the domain");
    for (values, encoded) in inputs.rows().into_iter().zip(rows.rows()) {
        needles.values("the input", &values.to_vec(), &encoded.to_vec());
    }
    for (header, data) in asked.headers.iter().zip(&asked.chunks) {
        component(&mut needles, "the input", &header.own, data, rows.len());
        component(&mut needles, "the input", &header.next, data, rows.len());
    }
    let parts = all(asked.send(&client).await);
    all(asked.send(&client).await);
    // The noise that is looked for is the noise that was used: one model votes.
    let opened = open(&parts);
    for (row, words) in opened.chunks(CLASSES).enumerate() {
        let shares = [0, 1, 2].map(|server| known(server, mechanism, row as u64, CLASSES));
        let noise = |class: usize| shares.iter().map(|share| share[class]).sum::<i64>();
        let mut votes: Vec<i64> = (0..CLASSES).map(|class| words[class] - noise(class)).collect();
        votes.sort_unstable();
        assert_eq!(votes, [0, 0, 1], "row {row}");
    }
    for part in &parts {
        needles.random_bytes("the answer", &part.components.own);
        needles.random_bytes("the answer", &part.components.next);
    }
    let mut short = query(&task, &inputs);
    for (server, chunks) in short.chunks.iter_mut().enumerate() {
        needles.random_bytes(&format!("a refused input at server {server}"), &chunks.concat());
        for chunk in chunks {
            chunk.truncate(24);
        }
    }
    assert!(short.send(&client).await.iter().any(Result::is_err), "a short component is refused");
    let mut conflicting = query(&task, &inputs);
    for (header, first) in conflicting.headers.iter_mut().zip(&asked.headers) {
        header.request_id = first.request_id.clone();
        for sent in [&header.own, &header.next] {
            if let Some(v1::Component { kind: Some(v1::component::Kind::Seed(seed)) }) = sent {
                needles.random_bytes("seed of a refused input", seed);
            }
        }
    }
    assert!(conflicting.send(&client).await.iter().all(Result::is_err), "another input under the same id");

    let mut told = what_is_told(&world, &collector).await;
    let searcher = needles.searcher();
    // The search works: it finds every form, and every form that the logger makes of a secret.
    let found: BTreeSet<_> = searcher.find(&needles.all_forms()).into_iter().map(|(form, ..)| form).collect();
    assert_eq!(found.len(), needles.len());
    let seed = upload.headers[0].own.as_ref().and_then(|own| own.kind.clone());
    let Some(v1::component::Kind::Seed(seed)) = seed else { panic!("server 0 gets seeds") };
    for line in logged(&seed) {
        assert!(!searcher.find(line.as_bytes()).is_empty(), "not found in {line}");
    }
    // What is told is what is meant: the finest level, and public things.
    let log = String::from_utf8_lossy(&told[0].1).into_owned();
    let request: String = asked.headers[0].request_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(log.contains(&request), "the request's id is logged");
    assert!(log.contains(r#""message":"received""#), "single messages are logged");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let (level, target) = (line["level"].as_str(), line["target"].as_str().unwrap_or_default());
        let fine = matches!(level, Some("DEBUG" | "TRACE"));
        assert!(!fine || target.starts_with("concilium"), "details of another library: {line}");
    }
    told.retain(|(_, bytes)| !bytes.is_empty());
    for (source, bytes) in &told {
        let found: BTreeSet<_> = searcher.find(bytes).into_iter().map(|(_, name, _)| name).collect();
        assert!(found.is_empty(), "{source} tells {found:?}");
    }
}

/// Everything that comes out of the servers but answers to clients, with its source.
async fn what_is_told(world: &World, collector: &Collector) -> Vec<(String, Vec<u8>)> {
    // Until all three have sent the spans of the last call, which is more than one interval.
    for attempt in 0.. {
        let refused =
            |(_, span): &&(String, opentelemetry_proto::tonic::trace::v1::Span)| span.name == "Predict";
        if collector.spans().iter().filter(refused).count() >= 12 {
            break;
        }
        assert!(attempt < 300, "spans are missing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut told = Vec::new();
    for server in 0..3 {
        let log = std::fs::read(world.cluster.log(server)).expect("a log");
        told.push((format!("the log of server {server}"), log));
    }
    for request in collector.requests() {
        told.push(("a trace as it travels".to_owned(), request.encode_to_vec()));
        told.push(("a trace".to_owned(), format!("{request:?}").into_bytes()));
    }
    for server in 0..3 {
        for path in ["/", "/api/overview", "/metrics", "/healthz", "/readyz"] {
            told.push((format!("{path} of server {server}"), get(world, server, path).await.into_bytes()));
        }
    }
    let operator = world.member(Role::Operator, "operator").connection();
    for status in statuses(&operator, Servers::All).await {
        let status = status.expect("an answer");
        told.push(("the status as it travels".to_owned(), status.encode_to_vec()));
        told.push(("the status".to_owned(), format!("{status:?}").into_bytes()));
    }
    for budget in budgets(&operator, Servers::All, None).await {
        told.push(("the budget".to_owned(), format!("{:?}", budget.expect("an answer")).into_bytes()));
    }
    for filter in log_filters(&operator, Servers::All).await {
        told.push(("the log filter".to_owned(), format!("{:?}", filter.expect("an answer")).into_bytes()));
    }
    told
}

/// A secret as a careless line of code would log it, one line for each way.
fn logged(secret: &Bytes) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let word = u64::from_le_bytes(secret[8..16].try_into().expect("eight bytes"));
        tracing::info!(?secret, "escaped");
        tracing::info!(secret = ?secret.to_vec(), "as a list");
        tracing::info!(secret = hex::encode(secret), "in hexadecimal");
        tracing::info!(word, "a number");
        tracing::info!(word = word as i64, "a signed number");
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, secret);
        tracing::info!(text, "in Base64");
    });
    let bytes = lines.0.lock().expect("nobody panics").clone();
    let text = String::from_utf8(bytes).expect("logs are text");
    text.lines().map(str::to_owned).collect()
}
