//! Repeats over real connections: three servers that answer as a test tells them.
//!
//! What the servers compute is not the matter here; they hand out prepared components. That lost
//! calls are repeated under the same id with the same bytes, and that one refusal ends the waiting,
//! shows only when calls really fail.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::{BTreeSet, VecDeque},
    net::TcpListener,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use concilium_client_library::{
    Connection, ConnectionConfig, Predictor, RepeatKey, answer::Released, predict::PredictError,
    retry::RetryPolicy,
};
use concilium_rpc::{
    certificates::Authority,
    connect::{incoming, server_builder},
    identity::{Identity, Role},
    receipt::issue,
    status::RpcError,
    tls::TlsMaterial,
    v1::{self, component::Kind, predict_request, predict_response::Message, prediction_server},
};
use ndarray::{Array2, array};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming, async_trait};

/// What a server does with the next call.
enum Act {
    /// Refuses.
    Refuse(RpcError),
    /// Says nothing, as a server does that waits for the others.
    Wait,
    /// Answers.
    Answer,
}

/// Everything that was sent in one call: the header and the joined chunks.
type Call = (v1::PredictHeader, Vec<u8>);

#[derive(Default)]
struct Script {
    acts: VecDeque<Act>,
    calls: Vec<Call>,
}

struct Server {
    party: u8,
    tls: TlsMaterial,
    script: Arc<Mutex<Script>>,
}

type Replies = Pin<Box<dyn Stream<Item = Result<v1::PredictResponse, Status>> + Send>>;

#[async_trait]
impl prediction_server::Prediction for Server {
    async fn list_tasks(
        &self,
        _: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        Ok(Response::new(v1::ListTasksResponse { tasks: vec![task()] }))
    }

    type PredictStream = Replies;

    async fn predict(
        &self,
        request: Request<Streaming<v1::PredictRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.and_then(|message| message.message);
        let Some(predict_request::Message::Header(header)) = first else {
            return Err(Status::invalid_argument("no header"));
        };
        let mut bytes = Vec::new();
        while let Some(message) = stream.next().await {
            if let Some(predict_request::Message::Chunk(chunk)) = message?.message {
                bytes.extend_from_slice(&chunk);
            }
        }
        let act = {
            let mut script = self.script.lock().unwrap();
            script.calls.push((header.clone(), bytes));
            script.acts.pop_front().unwrap_or(Act::Answer)
        };
        match act {
            Act::Refuse(error) => Err(error.into()),
            Act::Wait => std::future::pending().await,
            Act::Answer => {
                let replies = reply(self.party, &self.tls, &header).into_iter();
                let replies = replies.map(|message| Ok(v1::PredictResponse { message: Some(message) }));
                Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
            }
        }
    }
}

fn task() -> v1::Task {
    v1::Task {
        name: "pets".into(),
        epoch: 1,
        input_shape: vec![2],
        input_minimum: vec![0.0],
        input_maximum: vec![1.0],
        fractional_bits: 12,
        classes: 2,
        release: v1::Release::Label.into(),
        mechanism: Some(v1::NoiseMechanism {
            kind: v1::noise_mechanism::Kind::DiscreteGaussian.into(),
            parameter_millionths: 5_000_000,
        }),
        cost_nano_rho_per_row: 40_000_001,
        policy_digest: vec![7; 32].into(),
        max_rows_per_request: 2,
        delta: 1e-5,
        caller_cap_nano_rho: Some(1_000_000_000),
        task_cap_nano_rho: 2_000_000_000,
        privacy_unit: v1::PrivacyUnit::Record.into(),
        models_per_owner: 1,
        ..v1::Task::default()
    }
}

/// Server `party`'s components of the labels 1, 0, 1, ... for each row.
fn reply(party: u8, tls: &TlsMaterial, header: &v1::PredictHeader) -> Vec<Message> {
    let task = task();
    let receipt = v1::Receipt {
        task: task.name,
        epoch: task.epoch,
        request_id: header.request_id.clone(),
        release: task.release,
        rows: header.rows,
        classes: task.classes,
        mechanism: task.mechanism,
        charged_nano_rho: task.cost_nano_rho_per_row * u64::from(header.rows),
        models: 3,
        owners: 3,
        model_set_digest: vec![1; 32].into(),
        encoding: v1::ResultEncoding::BooleanU16.into(),
        client: "alice".into(),
        policy_digest: task.policy_digest,
        ..v1::Receipt::default()
    };
    let component = |index: u8| -> Vec<u8> {
        let label = |row: u32| match index {
            0 => 0x1234_u16,
            1 => 0x4321,
            _ => 0x1234 ^ 0x4321 ^ u16::from(row.is_multiple_of(2)),
        };
        (0..header.rows).flat_map(|row| label(row).to_le_bytes()).collect()
    };
    let chunk = |slot: v1::ComponentSlot, index: u8| {
        Message::Chunk(v1::ResultChunk { component_slot: slot.into(), bytes: component(index).into() })
    };
    let (own, next) = (component(party), component((party + 1) % 3));
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    vec![
        Message::Header(issue(tls, receipt, &own, &next, now_ms).unwrap()),
        chunk(v1::ComponentSlot::Own, party),
        chunk(v1::ComponentSlot::Next, (party + 1) % 3),
    ]
}

struct World {
    connection: Connection,
    scripts: [Arc<Mutex<Script>>; 3],
    _folder: tempfile::TempDir,
}

impl World {
    /// Three servers that first do what is told here, and answer afterwards.
    fn start(acts: [Vec<Act>; 3]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let scripts = acts.map(|acts| Arc::new(Mutex::new(Script { acts: acts.into(), calls: Vec::new() })));
        let servers = [0, 1, 2].map(|party: u8| {
            let identity = Identity::server(party).unwrap();
            let files = authority.issue(&identity, &[], 1).unwrap().save(folder.path()).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let tls = files.load().unwrap();
            let server = Server { party, tls: tls.clone(), script: Arc::clone(&scripts[usize::from(party)]) };
            let router = server_builder().add_service(prediction_server::PredictionServer::new(server));
            let connections = incoming(listener, &tls.into()).unwrap();
            tokio::spawn(router.serve_with_incoming(connections));
            address
        });
        let identity = Identity::new(Role::Client, "alice").unwrap();
        let tls = authority.issue(&identity, &[], 1).unwrap().save(folder.path()).unwrap();
        let config = ConnectionConfig { servers, tls, connect_timeout_ms: 5_000, request_timeout_ms: 60_000 };
        World { connection: Connection::open(&config).unwrap(), scripts, _folder: folder }
    }

    async fn predictor(&self) -> Predictor<'_> {
        let retry = RetryPolicy {
            attempts: 4,
            first_pause: Duration::from_millis(5),
            longest_pause: Duration::from_millis(20),
        };
        Predictor::new(&self.connection, self.connection.task("pets").await.unwrap()).with_retry(retry)
    }

    fn calls(&self) -> [Vec<Call>; 3] {
        self.scripts.each_ref().map(|script| script.lock().unwrap().calls.clone())
    }
}

fn rows() -> Array2<f64> {
    array![[0.0, 1.0], [0.5, 0.25]]
}

fn overloaded() -> Act {
    Act::Refuse(RpcError::Overloaded { what: "the queue".into(), retry_after_ms: 30 })
}

fn in_progress() -> Act {
    Act::Refuse(RpcError::InProgress { request_id: "00".into() })
}

#[tokio::test]
async fn repeats_have_the_same_id_and_the_same_bytes() {
    let world =
        World::start([vec![overloaded(), Act::Wait], vec![Act::Wait], vec![Act::Answer, overloaded()]]);
    let answers = world.predictor().await.predict(rows().view(), |_| ()).await.unwrap();
    assert_eq!(answers[0].released, Released::Labels(vec![1, 0]));
    assert_eq!(answers[0].attempts, 3);
    for (server, calls) in world.calls().iter().enumerate() {
        assert_eq!(calls.len(), 3, "server {server}");
        assert!(calls.iter().all(|call| *call == calls[0]), "server {server} got different bytes");
        let expected = if server == 0 { 0 } else { 2 * 2 * 8 };
        assert_eq!(calls[0].1.len(), expected, "server {server}");
    }
}

#[tokio::test]
async fn requests_have_different_ids_and_are_reported_one_by_one() {
    let world = World::start([vec![], vec![], vec![]]);
    let input = Array2::from_elem((5, 2), 0.5);
    let mut finished = Vec::new();
    let predictor = world.predictor().await;
    predictor.predict(input.view(), |answer| finished.push(answer.rows.clone())).await.unwrap();
    assert_eq!(finished, [0..2, 2..4, 4..5]);
    let [calls, ..] = world.calls();
    let ids: BTreeSet<_> = calls.iter().map(|(header, _)| header.request_id.clone()).collect();
    assert_eq!(ids.len(), 3);
}

/// What the servers get is all that a rerun has in common with the run before, so two predictors stand
/// for two processes.
#[tokio::test]
async fn a_repeat_key_makes_the_same_requests_again_and_no_others() {
    let world = World::start([vec![], vec![], vec![]]);
    let predict = async |rows: Array2<f64>, key: Option<u8>| {
        let mut predictor = world.predictor().await.with_rows_per_request(1);
        if let Some(byte) = key {
            predictor = predictor.with_repeat_key(RepeatKey::new([byte; 32]));
        }
        predictor.predict(rows.view(), |_| ()).await.unwrap();
        let taken = world.scripts.each_ref().map(|script| std::mem::take(&mut script.lock().unwrap().calls));
        assert!(taken.iter().all(|calls| calls.len() == rows.nrows()));
        taken
    };
    let first = predict(rows(), Some(1)).await;
    assert!(predict(rows(), Some(1)).await == first, "other bytes were sent");
    // A change of one row leaves the other requests alone.
    let mut other = rows();
    other[(1, 1)] += 1.0 / 4096.0;
    let changed = predict(other, Some(1)).await;
    for server in 0..3 {
        assert!(changed[server][0] == first[server][0]);
        let (before, after) = (&first[server][1].0, &changed[server][1].0);
        assert_ne!(before.request_id, after.request_id);
        let seeds = |header: &v1::PredictHeader| {
            let kinds = [&header.own, &header.next].map(|part| part.clone().unwrap().kind.unwrap());
            kinds.into_iter().filter(|kind| matches!(kind, Kind::Seed(_))).collect::<Vec<_>>()
        };
        assert!(seeds(before).iter().all(|seed| !seeds(after).contains(seed)), "server {server}");
    }
    let ids = |calls: &[Vec<Call>; 3]| {
        calls.iter().flatten().map(|(header, _)| header.request_id.clone()).collect::<BTreeSet<_>>()
    };
    assert_eq!(ids(&first).len(), 2);
    assert!(ids(&first).is_disjoint(&ids(&predict(rows(), Some(2)).await)), "another key");
    let (fresh, again) = (predict(rows(), None).await, predict(rows(), None).await);
    assert!(ids(&first).is_disjoint(&ids(&fresh)) && ids(&fresh).is_disjoint(&ids(&again)), "no key");
}

/// What is left after a crash need not pay for the requests that were charged before it.
#[tokio::test]
async fn with_a_repeat_key_the_budget_is_the_servers_matter() {
    let world = World::start([vec![], vec![], vec![]]);
    let input = Array2::from_elem((30, 2), 0.5);
    let failure = world.predictor().await.predict(input.view(), |_| ()).await.unwrap_err();
    assert!(matches!(failure.source, PredictError::NotAffordable { affordable: 24, .. }), "{failure}");
    let predictor = world.predictor().await.with_repeat_key(RepeatKey::new([1; 32]));
    assert_eq!(predictor.predict(input.view(), |_| ()).await.unwrap().len(), 15);
}

#[tokio::test]
async fn a_refusal_for_good_ends_the_waiting_and_names_the_server() {
    let unknown = RpcError::UnknownIdentity {
        identity: "client `alice`".into(),
        configuration_key: "identities.clients".into(),
    };
    let world = World::start([
        vec![Act::Answer, Act::Wait],
        vec![Act::Answer, Act::Refuse(unknown)],
        vec![Act::Answer, Act::Wait],
    ]);
    let input = Array2::from_elem((3, 2), 0.5);
    let failure = world.predictor().await.predict(input.view(), |_| ()).await.unwrap_err();
    // The first request was answered; what it cost is not lost.
    assert_eq!(failure.finished.len(), 1);
    let message = failure.to_string();
    assert!(message.contains("server 1") && message.contains("identities.clients"), "{message}");
    assert!(message.contains("first 2 of 3 rows"), "{message}");
    assert!(matches!(failure.source, PredictError::Servers { attempts: 1, .. }), "{message}");
}

#[tokio::test]
async fn attempts_are_bounded_but_work_in_progress_is_waited_for() {
    let world = World::start([0, 1, 2].map(|_| (0..9).map(|_| overloaded()).collect()));
    let failure = world.predictor().await.predict(rows().view(), |_| ()).await.unwrap_err();
    assert!(matches!(failure.source, PredictError::Servers { attempts: 4, .. }), "{failure}");
    // More often than there are attempts.
    let world = World::start([0, 1, 2].map(|_| (0..9).map(|_| in_progress()).collect()));
    let answers = world.predictor().await.predict(rows().view(), |_| ()).await.unwrap();
    assert_eq!(answers[0].attempts, 10);
}

#[tokio::test]
async fn nothing_is_sent_of_an_input_with_a_bad_row() {
    let world = World::start([vec![], vec![], vec![]]);
    let mut input = Array2::from_elem((5, 2), 0.5);
    input[(4, 1)] = f64::NAN;
    let failure = world.predictor().await.predict(input.view(), |_| ()).await.unwrap_err();
    assert!(failure.to_string().contains("row 4: feature 1 is NaN"), "{failure}");
    let empty = Array2::zeros((0, 2));
    let failure = world.predictor().await.predict(empty.view(), |_| ()).await.unwrap_err();
    assert!(matches!(failure.source, PredictError::NoRows), "{failure}");
    assert!(world.calls().iter().all(Vec::is_empty));
}
