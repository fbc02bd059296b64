//! What the tests of real server processes share: a small task, owners whose votes are known, and
//! calls made directly on the generated stubs, so that a test can send what no honest client sends.

#![allow(dead_code, unreachable_pub)]

pub mod known_noise;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use concilium_client_library::{Connection, ConnectionConfig};
use concilium_demo::cluster::{Cluster, ServerProgram};
use concilium_inference::flatten;
use concilium_mpc::input::{Component, DealtShare, deal};
use concilium_mpc::opening::open_sums;
use concilium_mpc::release::ReleasedComponents;
use concilium_network::{InputDomain, Network, Precision, Ring, quantise};
use concilium_ring::{Element, Z32, Z64};
use concilium_rpc::connect;
use concilium_rpc::identity::Role;
use concilium_rpc::receipt::accept;
use concilium_rpc::signature::Authorities;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::budget_client::BudgetClient;
use concilium_rpc::v1::model_store_client::ModelStoreClient;
use concilium_rpc::v1::prediction_client::PredictionClient;
use concilium_rpc::v1::{
    self, ActivateRequest, GetBudgetRequest, ListTasksRequest, PredictHeader, PredictRequest,
    PredictResponse, Receipt, SignedReceipt, UploadHeader, UploadRequest, predict_request, predict_response,
    upload_request,
};
use ndarray::{Array1, Array2};
use rand::TryRng;
use rand::rngs::SysRng;
use tonic::transport::Channel;

pub const FEATURES: usize = 4;
pub const CLASSES: usize = 3;
pub const FRACTIONAL_BITS: u32 = 12;
/// Sigma 2: a row costs 0.250000020 rho at three classes.
pub const ROW_COST_NANO_RHO: u64 = 250_000_021;

/// A task file with one task, `votes`, that releases histograms. `budget_rho` pays for about four
/// rows for each rho.
pub fn task_file(name: &str, budget_rho: &str) -> String {
    format!(
        "[tasks.{name}]\nepoch = 1\ninput_shape = [{FEATURES}]\ninput_minimum = -1.0\ninput_maximum = 1.0\n\
         fractional_bits = {FRACTIONAL_BITS}\nclasses = {CLASSES}\nrelease = \"histogram\"\nsigma = 2\n\
         budget_rho = {budget_rho}\ndelta = 1e-5\nrequest_rows = 8\n\
         models_per_owner = 100\n"
    )
}

/// The executable under test.
pub fn program() -> ServerProgram {
    ServerProgram {
        path: PathBuf::from(env!("CARGO_BIN_EXE_concilium-server")),
        arguments: Vec::new(),
        ends_with_input: false,
    }
}

/// Three running servers that are connected to each other, and the folder that they live in.
pub struct World {
    pub cluster: Cluster,
    pub folder: tempfile::TempDir,
}

impl World {
    pub async fn start(budget_rho: &str) -> World {
        let tasks = task_file("votes", budget_rho);
        Self::start_with([&tasks, &tasks, &tasks], "").await
    }

    pub async fn start_with(tasks: [&str; 3], extra: &str) -> World {
        Self::start_program(program(), tasks, extra).await
    }

    pub async fn start_program(program: ServerProgram, tasks: [&str; 3], extra: &str) -> World {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut cluster = Cluster::start(folder.path(), program, tasks, extra).expect("servers start");
        cluster.wait_until_ready(Duration::from_secs(60)).await.expect("servers connect");
        World { cluster, folder }
    }

    pub fn member(&self, role: Role, name: &str) -> Caller {
        Caller::new(&self.cluster.member(role, name).expect("a certificate is issued"))
    }
}

impl Drop for World {
    /// The servers' logs say more than a failed assertion.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for server in 0..3 {
                let log = std::fs::read_to_string(self.cluster.log(server)).unwrap_or_default();
                eprintln!("--- log of server {server}\n{log}");
            }
        }
    }
}

/// Somebody with a certificate, connected to the three servers.
pub struct Caller {
    pub config: ConnectionConfig,
    pub authorities: Authorities,
    pub channels: [Channel; 3],
}

impl Caller {
    pub fn new(config: &ConnectionConfig) -> Caller {
        let tls = config.tls.load().expect("the certificate is good");
        let channels = connect::connect_lazily(&config.servers, &tls).expect("addresses are good");
        Caller { config: config.clone(), authorities: Authorities::of(&tls), channels }
    }

    pub fn connection(&self) -> Connection {
        Connection::open(&self.config).expect("the configuration is good")
    }

    pub fn prediction(&self, server: usize) -> PredictionClient<Channel> {
        PredictionClient::new(self.channels[server].clone())
    }

    pub fn models(&self, server: usize) -> ModelStoreClient<Channel> {
        ModelStoreClient::new(self.channels[server].clone())
    }

    pub async fn task(&self, server: usize, name: &str) -> v1::Task {
        let tasks = self.prediction(server).list_tasks(ListTasksRequest {}).await.expect("tasks are listed");
        tasks.into_inner().tasks.into_iter().find(|task| task.name == name).expect("the task is served")
    }
}

/// A network whose vote is the index of the largest of the first `CLASSES` inputs, shifted by
/// `shift`: owners of different shifts vote differently, in a way that tests know.
pub fn shifted_network(shift: usize) -> Network {
    let first = Array2::from_shape_fn((FEATURES, CLASSES), |(i, j)| {
        f64::from((i + shift) % CLASSES == j && i < CLASSES)
    });
    let identity = Array2::from_shape_fn((CLASSES, CLASSES), |(i, j)| f64::from(i == j));
    // A bias of 1 keeps everything positive, so that ReLU changes nothing.
    let layers = vec![(first, Array1::ones(CLASSES)), (identity, Array1::zeros(CLASSES))];
    Network::perceptron(vec![FEATURES], layers).expect("sizes fit")
}

pub fn domain() -> InputDomain {
    InputDomain::new(vec![FEATURES], vec![-1.0], vec![1.0]).expect("a sound domain")
}

/// The class that [`shifted_network`] votes for.
pub fn vote(row: &[f64], shift: usize) -> usize {
    let best = (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("there are classes");
    (best + shift) % CLASSES
}

fn to_wire(component: &Component) -> v1::Component {
    let kind = match component {
        Component::Seed(seed) => v1::component::Kind::Seed(seed.to_vec().into()),
        Component::Data(bytes) => v1::component::Kind::DataBytes(bytes.len() as u64),
    };
    v1::Component { kind: Some(kind) }
}

fn data(share: &DealtShare) -> Vec<Bytes> {
    let parts = [&share.own, &share.next].into_iter().filter_map(|component| match component {
        Component::Data(bytes) if !bytes.is_empty() => Some(Bytes::from(bytes.clone())),
        _ => None,
    });
    parts.flat_map(concilium_rpc::chunk::chunks).collect()
}

/// An upload that a test may spoil before it is sent.
pub struct ModelUpload {
    pub headers: [UploadHeader; 3],
    pub chunks: [Vec<Bytes>; 3],
}

pub fn model_upload(task: &str, model: &str, network: &Network) -> ModelUpload {
    model_upload_in(Ring::Bits64, task, model, network)
}

pub fn model_upload_in(ring: Ring, task: &str, model: &str, network: &Network) -> ModelUpload {
    let precision = Precision { ring, fractional_bits: FRACTIONAL_BITS };
    let fixed = quantise(network, &domain(), precision).expect("headroom is left");
    let dealt = match ring {
        Ring::Bits64 => deal(&flatten::<Z64>(&fixed), &mut SysRng),
        Ring::Bits32 => deal(&flatten::<Z32>(&fixed), &mut SysRng),
    };
    let dealt = dealt.expect("randomness");
    let mut content = [0; 32];
    SysRng.try_fill_bytes(&mut content).expect("randomness");
    let headers = dealt.each_ref().map(|share| UploadHeader {
        task: task.to_owned(),
        model: model.to_owned(),
        architecture: serde_json::to_vec(&fixed.architecture()).expect("JSON").into(),
        own: Some(to_wire(&share.own)),
        next: Some(to_wire(&share.next)),
        content_digest: content.to_vec().into(),
        epoch: 1,
        owner_budget_nano_rho: None,
        retrained_on_new_data: false,
        version: 0,
    });
    ModelUpload { headers, chunks: dealt.each_ref().map(data) }
}

impl ModelUpload {
    pub async fn send_to(&self, owner: &Caller, server: usize) -> Result<v1::Model, RpcError> {
        let header = upload_request::Message::Header(self.headers[server].clone());
        let chunks = self.chunks[server].iter().cloned().map(upload_request::Message::Chunk);
        let messages: Vec<_> = std::iter::once(header)
            .chain(chunks)
            .map(|message| UploadRequest { message: Some(message) })
            .collect();
        let answer = owner.models(server).upload(tokio_stream::iter(messages)).await;
        answer
            .map(|answer| answer.into_inner().model.expect("a model"))
            .map_err(|s| RpcError::from_status(&s))
    }

    pub async fn activate(&self, owner: &Caller, server: usize) -> Result<v1::Model, RpcError> {
        let UploadHeader { task, model, content_digest, .. } = self.headers[server].clone();
        let answer = owner.models(server).activate(ActivateRequest { task, model, content_digest }).await;
        answer
            .map(|answer| answer.into_inner().model.expect("a model"))
            .map_err(|s| RpcError::from_status(&s))
    }
}

/// Shares one model of the task `votes` and makes it ready on all three servers.
pub async fn share_model(owner: &Caller, model: &str, network: &Network) {
    share_model_of(owner, "votes", model, network).await;
}

/// Shares one model and makes it ready on all three servers.
pub async fn share_model_of(owner: &Caller, task: &str, model: &str, network: &Network) {
    make_ready(owner, &model_upload(task, model, network)).await;
}

/// Uploads a model and makes it ready on all three servers.
pub async fn make_ready(owner: &Caller, upload: &ModelUpload) {
    for server in 0..3 {
        upload.send_to(owner, server).await.expect("the upload is accepted");
    }
    for server in 0..3 {
        let model = upload.activate(owner, server).await.expect("the model is activated");
        assert_eq!(model.state(), v1::ModelState::Ready);
    }
}

/// A request that a test may spoil before it is sent.
#[derive(Clone)]
pub struct Query {
    pub headers: [PredictHeader; 3],
    pub chunks: [Vec<Bytes>; 3],
}

pub fn query(task: &v1::Task, rows: &Array2<f64>) -> Query {
    let encoded = domain().encode(rows.view(), FRACTIONAL_BITS).expect("inputs lie in the domain");
    fn dealt<E: Element>(encoded: &Array2<i64>) -> [DealtShare; 3] {
        let elements: Vec<E> = encoded.iter().map(|&value| E::from_signed(value)).collect();
        deal(&elements, &mut SysRng).expect("randomness")
    }
    let dealt = match task.ring_bits {
        Some(32) => dealt::<Z32>(&encoded),
        _ => dealt::<Z64>(&encoded),
    };
    let mut id = [0; 16];
    SysRng.try_fill_bytes(&mut id).expect("randomness");
    let headers = dealt.each_ref().map(|share| PredictHeader {
        task: task.name.clone(),
        request_id: id.to_vec().into(),
        rows: rows.nrows() as u32,
        policy_digest: task.policy_digest.clone(),
        own: Some(to_wire(&share.own)),
        next: Some(to_wire(&share.next)),
    });
    Query { headers, chunks: dealt.each_ref().map(data) }
}

/// One server's answer.
pub struct Part {
    pub signed: SignedReceipt,
    pub receipt: Receipt,
    pub components: ReleasedComponents,
}

impl Query {
    pub async fn send_to(&self, client: &Caller, server: usize) -> Result<Part, RpcError> {
        let header = predict_request::Message::Header(self.headers[server].clone());
        let chunks = self.chunks[server].iter().cloned().map(predict_request::Message::Chunk);
        let messages: Vec<_> = std::iter::once(header)
            .chain(chunks)
            .map(|message| PredictRequest { message: Some(message) })
            .collect();
        let refused = |status: tonic::Status| RpcError::from_status(&status);
        let mut stream = client
            .prediction(server)
            .predict(tokio_stream::iter(messages))
            .await
            .map_err(refused)?
            .into_inner();
        let mut signed = None;
        let mut components = ReleasedComponents { own: Vec::new(), next: Vec::new() };
        while let Some(PredictResponse { message }) = stream.message().await.map_err(refused)? {
            match message.expect("a message is not empty") {
                predict_response::Message::Header(header) => signed = Some(header),
                predict_response::Message::Chunk(chunk) => match chunk.component_slot() {
                    v1::ComponentSlot::Own => components.own.extend_from_slice(&chunk.bytes),
                    _ => components.next.extend_from_slice(&chunk.bytes),
                },
            }
        }
        let signed = signed.expect("the header comes first");
        let ReleasedComponents { own, next } = &components;
        let receipt = accept(&signed, &client.authorities, server as u8, own, next);
        Ok(Part { receipt: receipt.expect("the receipt belongs to the result"), signed, components })
    }

    pub async fn send(&self, client: &Caller) -> [Result<Part, RpcError>; 3] {
        let (a, b, c) =
            tokio::join!(self.send_to(client, 0), self.send_to(client, 1), self.send_to(client, 2));
        [a, b, c]
    }

    /// The answer after a crash, with the number of attempts: everything before it must be retryable.
    pub async fn send_until_answered(&self, client: &Caller) -> ([Part; 3], usize) {
        let mut attempts = 0;
        loop {
            attempts += 1;
            assert!(attempts < 50, "no answer after the crash");
            let parts = self.send(client).await;
            if parts.iter().all(Result::is_ok) {
                return (all(parts), attempts);
            }
            assert!(parts.iter().flat_map(|part| part.as_ref().err()).all(RpcError::retryable));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Opens the histograms of all rows.
pub fn open(parts: &[Part; 3]) -> Vec<i64> {
    let rows = parts[0].receipt.rows as usize;
    let components = parts.each_ref().map(|part| part.components.clone());
    open_sums(&components, rows * CLASSES).expect("copies agree")
}

/// All three parts, or the panic that says which server refused.
pub fn all(parts: [Result<Part, RpcError>; 3]) -> [Part; 3] {
    let mut server = 0;
    parts.map(|part| {
        server += 1;
        part.unwrap_or_else(|error| panic!("server {} refused: {error}", server - 1))
    })
}

/// Rows of inputs whose largest entry is known.
pub fn rows(count: usize) -> Array2<f64> {
    Array2::from_shape_fn(
        (count, FEATURES),
        |(row, feature)| if feature == row % CLASSES { 0.9 } else { -0.3 },
    )
}

/// What every server has charged.
pub async fn spent(world: &World) -> [u64; 3] {
    let operator = world.member(Role::Operator, "operator");
    let mut spent = [0; 3];
    for (server, spent) in spent.iter_mut().enumerate() {
        let mut client = BudgetClient::new(operator.channels[server].clone());
        let answer = client.get_budget(GetBudgetRequest { task: "votes".into() }).await.expect("budget");
        *spent = answer.into_inner().tasks[0].spent_nano_rho.expect("operators see totals");
    }
    spent
}

/// Stops all three servers, and gives them this task file for the next start.
pub fn stop_with(world: &mut World, tasks: &str) {
    for server in 0..3 {
        world.cluster.kill_server(server);
        let path = world.cluster.home(server).join("tasks.toml");
        std::fs::write(path, tasks).expect("the task file is written");
    }
}

/// Restarts all three servers with this task file.
pub async fn restart_with(world: &mut World, tasks: &str) {
    stop_with(world, tasks);
    for server in 0..3 {
        world.cluster.start_server(server).expect("it starts again");
    }
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("they join again");
}

/// Shares a model for an epoch, with a budget of its owner.
pub async fn share_on_terms(owner: &Caller, model: &str, epoch: u64, budget: Option<u64>) {
    let mut upload = model_upload("votes", model, &shifted_network(0));
    for header in &mut upload.headers {
        (header.epoch, header.owner_budget_nano_rho) = (epoch, budget);
    }
    for server in 0..3 {
        upload.send_to(owner, server).await.expect("the upload is accepted");
    }
    for server in 0..3 {
        upload.activate(owner, server).await.expect("the model is activated");
    }
}
