//! The owners' interface.

use std::sync::Arc;
use std::time::Duration;

use concilium_network::Architecture;
use concilium_privacy::{Clock, EpochBasis, EpochDeclaration, NanoRho, SystemClock};
use concilium_rpc::connect::ReloadedChannels;
use concilium_rpc::identity::{Identity, Role, check_name};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::compare_model_response::Outcome;
use concilium_rpc::v1::model_store_server::ModelStore;
use concilium_rpc::v1::peer_client::PeerClient;
use concilium_rpc::v1::{
    ActivateRequest, ActivateResponse, CompareModelRequest, ListModelsRequest, ListModelsResponse,
    ModelState, UploadHeader, UploadRequest, UploadResponse, WithdrawRequest, WithdrawResponse,
    upload_request,
};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::context::Context;
use crate::models::{Entry, LARGEST_VERSION, ModelKey, Terms, Upload};
use crate::prediction::{broken, no_header, read_components, second_header};
use crate::self_test::TestKey;
use crate::task::Task;

/// Largest JSON of an architecture: a thousand steps of a few hundred bytes each.
const MAXIMUM_ARCHITECTURE_BYTES: usize = 256 * 1024;

/// Serves owners.
pub struct ModelService {
    context: Arc<Context>,
    /// Connections to the peer ports of servers 0, 1 and 2, made on first use.
    peers: ReloadedChannels,
}

impl ModelService {
    /// The service of this server.
    pub fn new(context: Arc<Context>, peers: ReloadedChannels) -> Self {
        ModelService { context, peers }
    }

    async fn store(&self, owner: &Identity, mut stream: Streaming<UploadRequest>) -> Result<Entry, RpcError> {
        let header = match stream.message().await.map_err(broken)? {
            Some(UploadRequest { message: Some(upload_request::Message::Header(header)) }) => header,
            _ => return Err(no_header()),
        };
        let task = Arc::clone(self.context.tasks.get(&header.task)?);
        let (key, architecture, content_digest) = check_header(&task, owner, &header)?;
        let terms = check_terms(&task, &header)?;
        let elements = architecture.parameter_count() as u64;
        let pieces = stream.map(|message| match message.map_err(broken)?.message {
            Some(upload_request::Message::Chunk(chunk)) => Ok(chunk),
            _ => Err(second_header()),
        });
        let announced = [("own", &header.own), ("next", &header.next)];
        let [own, next] = read_components(announced, elements, architecture.ring, pieces).await?;
        let version = (header.version > 0).then_some(header.version);
        let upload = Upload { key, version, architecture, content_digest, terms, own, next };
        let now = i64::try_from(SystemClock.now_ms()).unwrap_or(i64::MAX);
        let (models, limit) = (Arc::clone(&self.context.models), task.policy.models_per_owner);
        let stored = tokio::task::spawn_blocking(move || models.upload(upload, limit, now));
        stored.await.map_err(crate::models::internal)?
    }

    /// Compares with both neighbours, and waits until the three servers have tested the version.
    async fn activate_model(&self, owner: &Identity, request: &ActivateRequest) -> Result<Entry, RpcError> {
        let task = self.context.tasks.get(&request.task)?;
        let key = key(task, owner.name(), &request.model)?;
        let entry = self.context.models.find(&key, &request.content_digest)?;
        match entry.state {
            ModelState::Ready => return Ok(entry),
            ModelState::Rejected | ModelState::Retired => {
                return Err(RpcError::ModelRejected {
                    task: key.task,
                    model: key.model,
                    problem: entry.reason,
                });
            }
            _ => {}
        }
        let here = self.context.here;
        for (peer, component) in [(here.next(), here.next()), (here.previous(), here)] {
            let digest = entry.component_digest(here, component.number() as u32).unwrap_or_default();
            let question = CompareModelRequest {
                task: key.task.clone(),
                owner: key.owner.clone(),
                model: key.model.clone(),
                content_digest: entry.content_digest.to_vec().into(),
                component_digest: digest.to_vec().into(),
                component: component.number() as u32,
                epoch: entry.terms.epoch,
                owner_budget_nano_rho: entry.terms.budget.map(NanoRho::units),
                retrained_on_new_data: entry.terms.retrained,
                version: entry.version,
            };
            let unavailable = |step: String| RpcError::PeerUnavailable { peer: peer.to_string(), step };
            let channel = self.peers.to(peer.number()).map_err(|error| unavailable(error.to_string()))?;
            let answer = PeerClient::new(channel)
                .compare_model(question)
                .await
                .map_err(|status| unavailable(format!("comparing the model: {}", status.message())))?;
            match answer.into_inner().outcome() {
                Outcome::Match => {}
                Outcome::Mismatch => {
                    let error = RpcError::InconsistentDealer {
                        dealer: owner.to_string(),
                        what: format!("model {}", key.model),
                        component: component.number() as u8,
                    };
                    self.reject(&entry, &error.to_string())?;
                    return Err(error);
                }
                Outcome::TermsDiffer => {
                    let problem = format!(
                        "this server and {peer} were given different epochs, budgets of the owner or version numbers; \
                         withdraw the model and share it with one `--budget-rho`"
                    );
                    self.reject(&entry, &problem)?;
                    return Err(RpcError::ModelRejected { task: key.task, model: key.model, problem });
                }
                _ => {
                    let step = "it does not hold the model yet; upload it to all three servers first";
                    return Err(unavailable(step.to_owned()));
                }
            }
        }
        self.wait_for_test(&key, entry.content_digest).await
    }

    fn reject(&self, entry: &Entry, problem: &str) -> Result<(), RpcError> {
        let rejected =
            self.context.models.set_state(&entry.version_key(), ModelState::Rejected, problem, None);
        rejected.map(|_| ())
    }

    /// Asks for the self-test of a version, unless another server's call has brought it about already.
    async fn wait_for_test(&self, model: &ModelKey, content_digest: [u8; 32]) -> Result<Entry, RpcError> {
        let context = &self.context;
        let find = || context.models.find(model, &content_digest);
        let entry = find()?;
        if entry.state == ModelState::Ready {
            return Ok(entry);
        }
        if !context.lane.is_connected() {
            return Err(context.lane.failure());
        }
        let tested = context.self_tests.ask(TestKey { model: model.clone(), content_digest });
        let patience = Duration::from_millis(context.limits.request_timeout_ms);
        match tokio::time::timeout(patience, tested).await {
            Ok(Ok(outcome)) => outcome.and_then(|()| find()),
            _ => Err(RpcError::PeerUnavailable {
                peer: "another server".to_owned(),
                step: format!("the model's self-test has not run within {} s", patience.as_secs()),
            }),
        }
    }
}

/// Longest reason of a withdrawal.
const MAXIMUM_REASON_BYTES: usize = 200;

/// What is listed as the reason of a withdrawal.
fn withdrawal(caller: &Identity, reason: &str) -> Result<String, RpcError> {
    let reason = reason.trim();
    if reason.len() > MAXIMUM_REASON_BYTES || reason.chars().any(char::is_control) {
        return Err(RpcError::InvalidRequest {
            field: "reason".to_owned(),
            problem: format!(
                "has {} bytes; at most {MAXIMUM_REASON_BYTES} are allowed, without control characters",
                reason.len()
            ),
        });
    }
    let said = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Ok(format!("withdrawn by {caller}{said}"))
}

fn key(task: &Task, owner: &str, model: &str) -> Result<ModelKey, RpcError> {
    let invalid =
        |field: &str, problem: String| RpcError::InvalidRequest { field: field.to_owned(), problem };
    check_name(model).map_err(|error| invalid("model", format!("is refused: {error}")))?;
    check_name(owner).map_err(|error| invalid("owner", format!("is refused: {error}")))?;
    Ok(ModelKey { task: task.name().to_owned(), owner: owner.to_owned(), model: model.to_owned() })
}

/// Checks everything in the header that needs no share.
fn check_header(
    task: &Task,
    owner: &Identity,
    header: &UploadHeader,
) -> Result<(ModelKey, Architecture, [u8; 32]), RpcError> {
    let key = key(task, owner.name(), &header.model)?;
    let rejected = |problem: String| RpcError::ModelRejected {
        task: key.task.clone(),
        model: key.model.clone(),
        problem,
    };
    if header.architecture.len() > MAXIMUM_ARCHITECTURE_BYTES {
        return Err(RpcError::TooLarge {
            what: "bytes of the architecture".to_owned(),
            limit: MAXIMUM_ARCHITECTURE_BYTES as u64,
            got: header.architecture.len() as u64,
        });
    }
    let architecture = Architecture::from_json(&header.architecture)
        .map_err(|error| rejected(format!("the architecture is refused: {error}")))?;
    let fits = [
        ("input features", task.domain.features(), architecture.input_features),
        ("classes", task.policy.bins, architecture.classes),
        ("bits in the ring", task.precision.ring.bits() as usize, architecture.ring.bits() as usize),
        ("fractional bits", task.precision.fractional_bits as usize, architecture.fractional_bits as usize),
    ];
    for (what, expected, got) in fits {
        if expected != got {
            return Err(RpcError::ShapeMismatch {
                what: format!("model {}", key.model),
                expected: format!("{expected} {what}"),
                got: format!("{got} {what}"),
            });
        }
    }
    let content_digest =
        <[u8; 32]>::try_from(&header.content_digest[..]).map_err(|_| RpcError::InvalidRequest {
            field: "content_digest".to_owned(),
            problem: format!("has {} bytes, not 32", header.content_digest.len()),
        })?;
    if header.version > LARGEST_VERSION {
        return Err(RpcError::InvalidRequest {
            field: "version".to_owned(),
            problem: format!("is {}; at most {LARGEST_VERSION} is allowed", header.version),
        });
    }
    Ok((key, architecture, content_digest))
}

/// Checks for which epoch a model is shared, whether its owner says what the epoch asks for, and whether
/// its owner's budget pays for anything.
fn check_terms(task: &Task, header: &UploadHeader) -> Result<Terms, RpcError> {
    let invalid =
        |field: &str, problem: String| RpcError::InvalidRequest { field: field.to_owned(), problem };
    let epoch = task.policy.epoch;
    if header.epoch != epoch {
        let problem = format!(
            "is {}, but task `{}` is in epoch {epoch}: a model votes only in the epoch that its owner has agreed to",
            header.epoch,
            task.name()
        );
        return Err(invalid("epoch", problem));
    }
    let budget = header.owner_budget_nano_rho.map(NanoRho::new);
    let row = NanoRho::new(task.row_cost_nano_rho());
    if let Some(budget) = budget.filter(|budget| *budget < row) {
        let problem = format!(
            "is rho {budget}, but one row of task `{}` costs rho {row}: the model would never vote",
            task.name()
        );
        return Err(invalid("owner_budget_nano_rho", problem));
    }
    let retrained = header.retrained_on_new_data;
    if let Some(EpochDeclaration { basis: EpochBasis::Retrained, attested_by }) = &task.policy.declaration
        && !retrained
    {
        let problem = format!(
            "is not said, but epoch {epoch} of task `{}` began with nothing spent, because all its models are trained \
             anew on records that do not count in earlier epochs ({attested_by} answers for that): if that is so for \
             this model, say it with `concilium-owner share --retrained-on-new-data`, and if not, do not share it",
            task.name()
        );
        return Err(invalid("retrained_on_new_data", problem));
    }
    Ok(Terms { epoch, budget, retrained })
}

#[async_trait]
impl ModelStore for ModelService {
    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let owner = self.context.allowed.authorise(&request, &[Role::Owner])?;
        let entry = self.store(&owner, request.into_inner()).await?;
        Ok(Response::new(UploadResponse { model: Some(entry.to_wire()) }))
    }

    async fn activate(
        &self,
        request: Request<ActivateRequest>,
    ) -> Result<Response<ActivateResponse>, Status> {
        let owner = self.context.allowed.authorise(&request, &[Role::Owner])?;
        let entry = self.activate_model(&owner, request.get_ref()).await?;
        Ok(Response::new(ActivateResponse { model: Some(entry.to_wire()) }))
    }

    async fn list(
        &self,
        request: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let caller = self.context.allowed.authorise(&request, &[Role::Owner, Role::Operator])?;
        let task = &request.get_ref().task;
        if !task.is_empty() {
            self.context.tasks.get(task)?;
        }
        let models = self.context.models.list(|key| {
            (task.is_empty() || key.task == *task)
                && (caller.role() == Role::Operator || key.owner == caller.name())
        });
        Ok(Response::new(ListModelsResponse { models: models.iter().map(Entry::to_wire).collect() }))
    }

    async fn withdraw(
        &self,
        request: Request<WithdrawRequest>,
    ) -> Result<Response<WithdrawResponse>, Status> {
        let caller = self.context.allowed.authorise(&request, &[Role::Owner, Role::Operator])?;
        let WithdrawRequest { task, model, owner, version, reason } = request.into_inner();
        let task = self.context.tasks.get(&task)?;
        let owner = match (caller.role(), owner.as_str()) {
            (Role::Owner, "") => caller.name(),
            (Role::Owner, named) if named != caller.name() => {
                let error = RpcError::RoleNotAllowed {
                    identity: caller.to_string(),
                    needed: format!("operator, to withdraw a model of owner `{named}`"),
                };
                return Err(error.into());
            }
            (_, named) => named,
        };
        let key = key(task, owner, &model)?;
        let reason = withdrawal(&caller, &reason)?;
        let version = (version > 0).then_some(version);
        let models = Arc::clone(&self.context.models);
        let withdrawn = tokio::task::spawn_blocking(move || models.withdraw(&key, version, &reason));
        let entry = withdrawn.await.map_err(crate::models::internal).map_err(Status::from)??;
        tracing::info!(model = %entry.key, version = entry.version, reason = entry.reason, "a model was withdrawn");
        Ok(Response::new(WithdrawResponse { model: Some(entry.to_wire()) }))
    }
}
