//! The clients' interface.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use concilium_mpc::input::{Component, SEED_BYTES};
use concilium_network::Ring;
use concilium_privacy::{ContentDigest, Lookup, RequestId, RequestKey};
use concilium_rpc::chunk::{Assembler, chunks};
use concilium_rpc::identity::Role;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::prediction_server::Prediction;
use concilium_rpc::v1::{
    self, ComponentSlot, ListTasksRequest, ListTasksResponse, PredictHeader, PredictRequest, PredictResponse,
    ResultChunk, component, predict_request, predict_response,
};
use tokio::sync::oneshot;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::answer::Answer;
use crate::batch::content_digest;
use crate::context::Context;
use crate::history::Outcome;
use crate::kept::{ledger_error, replay, with_ledger};
use crate::metrics;
use crate::models::Entry;
use crate::owners::unpaid;
use crate::receipt;
use crate::task::Task;
use crate::waiting::Waiting;

/// Serves clients.
#[derive(Clone)]
pub struct PredictionService {
    context: Arc<Context>,
}

/// Counts a request when it has ended, also one whose client hung up: its future is dropped.
struct Counted {
    context: Arc<Context>,
    task: Option<Arc<Task>>,
    rows: u32,
    outcome: &'static str,
    began: Instant,
}

impl Counted {
    fn new(context: Arc<Context>) -> Self {
        Counted { context, task: None, rows: 0, outcome: "abandoned", began: Instant::now() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let task = self.task.as_ref().map_or("", |task| task.name());
        let latency = self.began.elapsed();
        metrics::count_request(task, self.outcome, latency);
        let outcome = match self.outcome {
            "answered" | "replayed" => Outcome::Answered { rows: self.rows, latency },
            reason => Outcome::Refused { reason },
        };
        self.context.history.note(task, self.context.clock.now_ms(), outcome);
    }
}

impl PredictionService {
    /// The service of this server.
    pub fn new(context: Arc<Context>) -> Self {
        PredictionService { context }
    }

    /// Takes one request to its answer.
    async fn answer(
        &self,
        client: String,
        mut stream: Streaming<PredictRequest>,
        counted: &mut Counted,
    ) -> Result<Answer, RpcError> {
        let context = &self.context;
        let header = match stream.message().await.map_err(broken)? {
            Some(PredictRequest { message: Some(predict_request::Message::Header(header)) }) => header,
            _ => return Err(no_header()),
        };
        let task = Arc::clone(context.tasks.get(&header.task)?);
        (counted.task, counted.rows) = (Some(Arc::clone(&task)), header.rows);
        let key = check_header(&task, &header, client)?;
        let span = tracing::Span::current();
        span.record("task", task.name()).record("request", tracing::field::display(&key.request));
        context.tasks.check_agreement(&task)?;
        context.watch.check(task.name())?;
        let elements = u64::from(header.rows) * task.domain.features() as u64;
        let components = [("own", &header.own), ("next", &header.next)];
        let pieces = stream.map(|message| match message.map_err(broken)?.message {
            Some(predict_request::Message::Chunk(chunk)) => Ok(chunk),
            _ => Err(second_header()),
        });
        let [own, next] = read_components(components, elements, task.precision.ring, pieces).await?;
        let public = public_digest(&key, &header);
        // Hashed here, once: the lane's thread only compares.
        let digests = [own.digest(&public), next.digest(&public)];
        let content = content_digest(&public, &digests);
        if let Some(answer) = self.kept(&key, content).await? {
            return Ok(answer);
        }
        // Every server says so at once; the leader alone would leave the others waiting.
        let models = context.models.ready(task.name());
        if models.is_empty() {
            return Err(RpcError::NoModels { task: task.name().to_owned() });
        }
        if models.iter().any(|entry| entry.terms.budget.is_some()) {
            let (context, task, rows) = (Arc::clone(context), Arc::clone(&task), header.rows.into());
            with_ledger(move || check_owners(&context, &task, &models, rows)).await?;
        }
        let (respond, answer) = oneshot::channel();
        let waiting = Waiting {
            key: key.clone(),
            content,
            public,
            rows: header.rows,
            own,
            next,
            digests,
            arrived: Instant::now(),
            arrival: 0,
            respond,
        };
        let place = context.room.enter(waiting)?;
        // Looked up only now: what another server tells from here on finds the request in the room.
        if let Some(waiting) = context.room.take_released(&key) {
            let context = Arc::clone(context);
            return with_ledger(move || replay(&context, &waiting)).await;
        }
        let patience = Duration::from_millis(context.limits.request_timeout_ms);
        let outcome = tokio::time::timeout(patience, answer).await;
        drop(place);
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(context.lane.failure()),
            Err(_) => Err(RpcError::PeerUnavailable {
                peer: "another server".to_owned(),
                step: format!(
                    "no batch with this request ended within {} ms; have all three servers been called?",
                    context.limits.request_timeout_ms
                ),
            }),
        }
    }

    /// The answer that was released under this id before, if there is one.
    async fn kept(&self, key: &RequestKey, content: ContentDigest) -> Result<Option<Answer>, RpcError> {
        let (ledger, wanted) = (Arc::clone(&self.context.ledger), key.clone());
        match with_ledger(move || ledger.lookup(&wanted, &content).map_err(ledger_error)).await? {
            Lookup::Held { result, released: true } => {
                self.context.room.note_replay(key);
                Answer::from_stored(&result).map(Some)
            }
            // Not known to be released: the three servers agree on it like on a batch.
            Lookup::Held { .. } | Lookup::New => Ok(None),
        }
    }

    /// The task as a caller sees it; `client` is the caller if it is one.
    fn describe(&self, task: &Task, client: Option<&str>) -> Result<v1::Task, RpcError> {
        let models = self.context.models.ready(task.name());
        let owners: std::collections::BTreeSet<_> = models.iter().map(|entry| &entry.key.owner).collect();
        let (epoch_basis, epoch_attested_by) = task.wire_declaration();
        Ok(v1::Task {
            epoch_basis: epoch_basis.into(),
            epoch_attested_by,
            name: task.name().to_owned(),
            epoch: task.policy.epoch,
            input_shape: task.domain.shape().iter().map(|&size| size as u32).collect(),
            input_minimum: task.domain.minimum().to_vec(),
            input_maximum: task.domain.maximum().to_vec(),
            ring_bits: Some(task.precision.ring.bits()),
            fractional_bits: task.precision.fractional_bits,
            classes: task.policy.bins as u32,
            class_names: task.class_names.clone(),
            release: task.wire_release().into(),
            mechanism: Some(task.wire_mechanism()),
            cost_nano_rho_per_row: task.row_cost_nano_rho(),
            policy_digest: task.digest.to_vec().into(),
            owners_ready: owners.len() as u32,
            models_ready: models.len() as u32,
            max_rows_per_request: task.request_rows,
            delta: concilium_privacy::convert::delta_value(task.policy.delta),
            caller_spent_nano_rho: match client {
                Some(client) => self.spent_by(task.name(), task.policy.epoch, client)?,
                None => 0,
            },
            caller_cap_nano_rho: task.policy.cap_per_client.map(concilium_privacy::NanoRho::units),
            task_cap_nano_rho: task.policy.cap_total.units(),
            privacy_unit: task.wire_unit().into(),
            models_per_owner: task.policy.models_per_owner,
            threshold: task.wire_threshold(),
            caller_cap_all_tasks_nano_rho: task
                .policy
                .cap_per_client_all_tasks
                .map(concilium_privacy::NanoRho::units),
            window: task.policy.window.map(|window| v1::SpendingWindow {
                cap_nano_rho: window.rho.units(),
                seconds: window.seconds,
            }),
        })
    }

    fn spent_by(&self, task: &str, epoch: u64, client: &str) -> Result<u64, RpcError> {
        let spending = self.context.ledger.spent(task, epoch).map_err(ledger_error)?;
        Ok(spending.by_client.get(client).map_or(0, |total| total.rho.units()))
    }
}

/// Refuses a request for which no owner is left whose own budget pays.
fn check_owners(context: &Context, task: &Task, models: &[Entry], rows: u64) -> Result<(), RpcError> {
    let unpaid = unpaid(context, task, models, rows)?;
    let paid = models.iter().any(|entry| !unpaid.owners.contains(&entry.key.owner));
    if paid { Ok(()) } else { Err(unpaid.refusal(task)) }
}

/// What a lost client connection is; nobody is there to read it.
pub(crate) fn broken(status: Status) -> RpcError {
    RpcError::MalformedShares {
        what: "the stream".to_owned(),
        problem: format!("broke off: {}", status.message()),
    }
}

pub(crate) fn no_header() -> RpcError {
    RpcError::InvalidRequest {
        field: "header".to_owned(),
        problem: "must be the first message of the stream".to_owned(),
    }
}

pub(crate) fn second_header() -> RpcError {
    RpcError::InvalidRequest {
        field: "header".to_owned(),
        problem: "may only be the first message; chunks of the components follow it".to_owned(),
    }
}

/// Checks everything in the header that needs no share.
fn check_header(task: &Task, header: &PredictHeader, client: String) -> Result<RequestKey, RpcError> {
    let invalid =
        |field: &str, problem: String| RpcError::InvalidRequest { field: field.to_owned(), problem };
    let id = <[u8; 16]>::try_from(&header.request_id[..])
        .map_err(|_| invalid("request_id", format!("has {} bytes, not 16", header.request_id.len())))?;
    if header.policy_digest[..] != task.digest {
        return Err(RpcError::PolicyMismatch {
            task: task.name().to_owned(),
            key: "policy_digest".to_owned(),
            here: hex::encode(task.digest),
            there: hex::encode(&header.policy_digest),
            peer: "the client's request".to_owned(),
        });
    }
    if header.rows == 0 {
        return Err(invalid("rows", "is 0; send at least one row".to_owned()));
    }
    if header.rows > task.request_rows {
        return Err(RpcError::TooLarge {
            what: format!("rows of one request for task {}", task.name()),
            limit: u64::from(task.request_rows),
            got: u64::from(header.rows),
        });
    }
    Ok(RequestKey { task: task.name().to_owned(), epoch: task.policy.epoch, client, request: RequestId(id) })
}

/// Digest of what is public and equal on the three servers.
fn public_digest(key: &RequestKey, header: &PredictHeader) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("concilium v1 request header");
    for text in [&key.task, &key.client] {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    hasher.update(&key.epoch.to_le_bytes()).update(&key.request.0);
    hasher.update(&header.rows.to_le_bytes()).update(&header.policy_digest);
    *hasher.finalize().as_bytes()
}

/// Reads the two components of `elements` elements of a ring that a header announces from the chunks that
/// follow it.
///
/// # Errors
/// [`RpcError::ShapeMismatch`] for data of the wrong length, [`RpcError::MalformedShares`] for a
/// missing component, a seed of the wrong length, or a stream that does not hold what was announced.
pub(crate) async fn read_components(
    announced: [(&'static str, &Option<v1::Component>); 2],
    elements: u64,
    ring: Ring,
    pieces: impl Stream<Item = Result<Bytes, RpcError>>,
) -> Result<[Component; 2], RpcError> {
    let malformed =
        |what: &str, problem: String| RpcError::MalformedShares { what: what.to_owned(), problem };
    let expected = elements * ring.element_bytes() as u64;
    let mut parts = Vec::new();
    for (name, component) in announced {
        match component.as_ref().and_then(|component| component.kind.as_ref()) {
            None => return Err(malformed(&format!("component `{name}`"), "is missing".to_owned())),
            Some(component::Kind::Seed(seed)) if seed.len() != SEED_BYTES => {
                let problem = format!("is a seed of {} bytes, not {SEED_BYTES}", seed.len());
                return Err(malformed(&format!("component `{name}`"), problem));
            }
            Some(component::Kind::Seed(_)) => {}
            Some(component::Kind::DataBytes(bytes)) if *bytes != expected => {
                return Err(RpcError::ShapeMismatch {
                    what: format!("component `{name}`"),
                    expected: format!("{elements} elements ({expected} bytes)"),
                    got: format!("{bytes} bytes"),
                });
            }
            Some(component::Kind::DataBytes(bytes)) => parts.push((name, *bytes)),
        }
    }
    let limit = expected.saturating_mul(2);
    let chunked =
        |error: concilium_rpc::chunk::ChunkError| malformed("the stream of chunks", error.to_string());
    let mut assembler = Assembler::new(parts, limit).map_err(chunked)?;
    let mut pieces = std::pin::pin!(pieces);
    while let Some(piece) = pieces.next().await {
        assembler.push(&piece?).map_err(chunked)?;
    }
    let mut data = assembler.finish().map_err(chunked)?.into_iter();
    let mut read = |component: &Option<v1::Component>| match component
        .as_ref()
        .and_then(|component| component.kind.as_ref())
    {
        Some(component::Kind::Seed(seed)) => {
            let mut own = [0; SEED_BYTES];
            own.copy_from_slice(seed);
            Component::Seed(own)
        }
        _ => Component::Data(data.next().map(|mut bytes| std::mem::take(&mut *bytes)).unwrap_or_default()),
    };
    Ok([read(announced[0].1), read(announced[1].1)])
}

type Responses = Pin<Box<dyn Stream<Item = Result<PredictResponse, Status>> + Send>>;

#[async_trait]
impl Prediction for PredictionService {
    type PredictStream = Responses;

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let caller =
            self.context.allowed.authorise(&request, &[Role::Client, Role::Owner, Role::Operator])?;
        let client = (caller.role() == Role::Client).then(|| caller.name().to_owned());
        let service = self.clone();
        let tasks = with_ledger(move || {
            service.context.tasks.all().map(|task| service.describe(task, client.as_deref())).collect()
        });
        Ok(Response::new(ListTasksResponse { tasks: tasks.await? }))
    }

    async fn predict(
        &self,
        request: Request<Streaming<PredictRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let caller = self.context.allowed.authorise(&request, &[Role::Client])?;
        let client = caller.name().to_owned();
        let mut counted = Counted::new(Arc::clone(&self.context));
        let answer = self.answer(client, request.into_inner(), &mut counted).await;
        counted.outcome = match &answer {
            Ok(answer) if answer.receipt.replayed => "replayed",
            Ok(_) => "answered",
            Err(error) => metrics::known_reason(error.reason()),
        };
        let answer = answer?;
        let header = predict_response::Message::Header(receipt::sign(&self.context, &answer)?);
        let mut components = answer.components;
        let slots = [
            (ComponentSlot::Own, std::mem::take(&mut components.own)),
            (ComponentSlot::Next, std::mem::take(&mut components.next)),
        ];
        let pieces = slots.into_iter().flat_map(|(slot, bytes)| {
            chunks(Bytes::from(bytes)).map(move |bytes| {
                predict_response::Message::Chunk(ResultChunk { component_slot: slot.into(), bytes })
            })
        });
        let messages: Vec<_> = std::iter::once(header)
            .chain(pieces)
            .map(|message| Ok(PredictResponse { message: Some(message) }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }
}
