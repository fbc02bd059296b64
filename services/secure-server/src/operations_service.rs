//! What operators read about the server itself, and what they set while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use concilium_rpc::identity::Role;
use concilium_rpc::lane::PROTOCOL_VERSION;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::operations_server::Operations;
use concilium_rpc::v1::{
    CertificateStatus, FindModelSetsRequest, FindModelSetsResponse, GetStatusRequest, GetStatusResponse,
    ModelState, ResumeTaskRequest, ResumeTaskResponse, SetLogFilterRequest, SetLogFilterResponse, TaskStatus,
};
use tonic::{Request, Response, Status, async_trait};

use crate::context::Context;
use crate::kept::with_ledger;
use crate::log::{self, LogFilter};
use crate::models::internal;
use crate::owners;
use crate::task::Task;

/// Longest time for which a filter can be set, in seconds: one week.
const MAXIMUM_DURATION_S: u32 = 604_800;

/// Longest reason of a resumption.
const MAXIMUM_REASON_BYTES: usize = 1000;

/// Serves operators.
#[derive(Clone)]
pub struct OperationsService {
    context: Arc<Context>,
}

impl OperationsService {
    /// The service of this server.
    pub fn new(context: Arc<Context>) -> Self {
        OperationsService { context }
    }

    fn certificate_status(&self) -> CertificateStatus {
        let tls = self.context.tls.current();
        let (own, authority) = (tls.info(), tls.authority());
        CertificateStatus {
            identity: tls.identity().uri(),
            serial: own.serial.clone(),
            not_before_unix_ms: own.not_before.saturating_mul(1000),
            not_after_unix_ms: own.not_after.saturating_mul(1000),
            authority: authority.subject.clone(),
            authority_not_after_unix_ms: authority.not_after.saturating_mul(1000),
            problem: self.context.tls.refusal().unwrap_or_default(),
        }
    }

    /// Owners whose own budgets are used up. A ledger that can't be read is told by other calls.
    fn owners_left(&self, task: &Task) -> BTreeMap<String, String> {
        let models = self.context.models.ready(task.name());
        let spending = self.context.ledger.spent(task.name(), task.policy.epoch);
        spending.map(|spending| owners::left(task, &models, &spending)).unwrap_or_default()
    }

    fn task_status(&self, task: &Task) -> TaskStatus {
        let models = self.context.models.present(task.name());
        let count = |state| models.iter().filter(|entry| entry.state == state).count() as u32;
        let ready = models.iter().filter(|entry| entry.state == ModelState::Ready);
        let owners: std::collections::BTreeSet<_> = ready.map(|entry| &entry.key.owner).collect();
        TaskStatus {
            task: task.name().to_owned(),
            epoch: task.policy.epoch,
            models_staged: count(ModelState::Staged),
            models_ready: count(ModelState::Ready),
            models_rejected: count(ModelState::Rejected),
            models_retired: count(ModelState::Retired),
            owners_left: self.owners_left(task).into_iter().collect(),
            stopped: self.context.watch.stop_of(task.name()).map(|stop| stop.reason).unwrap_or_default(),
            owners_ready: owners.len() as u32,
            queued_requests: self.context.room.count(task.name()) as u32,
            policy_digest: task.digest.to_vec().into(),
            policy_keys: task.keys.clone().into_iter().collect(),
        }
    }
}

/// Milliseconds since 1970-01-01 UTC.
fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Operations for OperationsService {
    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        self.context.allowed.authorise(&request, &[Role::Operator])?;
        let service = self.clone();
        let statuses = with_ledger(move || {
            Ok(service.context.tasks.all().map(|task| service.task_status(task)).collect())
        });
        let tasks = statuses.await?;
        Ok(Response::new(GetStatusResponse {
            party: self.context.here.number() as u32,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.context.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            lanes: vec![self.context.lane.to_wire()],
            tasks,
            server_time_unix_ms: i64::try_from(self.context.clock.now_ms()).unwrap_or(i64::MAX),
            certificate: Some(self.certificate_status()),
            peers: self.context.lane.peers_to_wire(self.context.here),
            protocol_version: PROTOCOL_VERSION,
        }))
    }

    async fn set_log_filter(
        &self,
        request: Request<SetLogFilterRequest>,
    ) -> Result<Response<SetLogFilterResponse>, Status> {
        let caller = self.context.allowed.authorise(&request, &[Role::Operator])?;
        let control = log::control()
            .ok_or_else(|| internal("the program that runs this server keeps its log to itself"))?;
        let SetLogFilterRequest { filter, duration_s } = request.into_inner();
        let state = match filter {
            None => control.state(),
            Some(text) => {
                let filter: LogFilter = text.parse().map_err(|error| invalid("filter", error))?;
                if duration_s > MAXIMUM_DURATION_S {
                    let problem = format!("is {duration_s}; 0 to {MAXIMUM_DURATION_S} are allowed");
                    return Err(invalid("duration_s", problem).into());
                }
                let duration = (duration_s > 0).then(|| Duration::from_secs(duration_s.into()));
                let state = control.set(filter, duration).map_err(internal)?;
                tracing::info!(
                    server = %self.context.here, caller = %caller, previous = %state.previous,
                    filter = %state.current, duration_s, "the log filter was set"
                );
                state
            }
        };
        let (reverts_at, reverts_to) = state.reverts.unzip();
        Ok(Response::new(SetLogFilterResponse {
            party: self.context.here.number() as u32,
            previous_filter: state.previous.to_string(),
            filter: state.current.to_string(),
            reverts_at_unix_ms: reverts_at.map(unix_ms),
            reverts_to: reverts_to.map(|filter| filter.to_string()).unwrap_or_default(),
        }))
    }

    async fn resume_task(
        &self,
        request: Request<ResumeTaskRequest>,
    ) -> Result<Response<ResumeTaskResponse>, Status> {
        let caller = self.context.allowed.authorise(&request, &[Role::Operator])?;
        let ResumeTaskRequest { task, reason } = request.into_inner();
        self.context.tasks.get(&task)?;
        if !(1..=MAXIMUM_REASON_BYTES).contains(&reason.trim().len()) {
            let problem =
                format!("has {} bytes; 1 to {MAXIMUM_REASON_BYTES} are allowed", reason.trim().len());
            return Err(invalid("reason", problem).into());
        }
        let context = Arc::clone(&self.context);
        let was_stopped = with_ledger(move || resume(&context, &task, caller.name(), reason.trim())).await?;
        Ok(Response::new(ResumeTaskResponse { party: self.context.here.number() as u32, was_stopped }))
    }

    async fn find_model_sets(
        &self,
        request: Request<FindModelSetsRequest>,
    ) -> Result<Response<FindModelSetsResponse>, Status> {
        self.context.allowed.authorise(&request, &[Role::Operator])?;
        let context = Arc::clone(&self.context);
        let digest = request.into_inner().digest;
        let found = tokio::task::spawn_blocking(move || context.model_sets.find(&digest));
        let sets = found.await.map_err(internal).map_err(Status::from)??;
        Ok(Response::new(FindModelSetsResponse { party: self.context.here.number() as u32, sets }))
    }
}

fn resume(context: &Context, task: &str, operator: &str, reason: &str) -> Result<String, RpcError> {
    let stop = context.watch.resume(context, task, operator, reason)?;
    if stop.is_some() {
        tracing::warn!(server = %context.here, task, operator, reason, "a stopped task goes on");
    }
    Ok(stop.map(|stop| stop.reason).unwrap_or_default())
}

fn invalid(field: &str, problem: impl ToString) -> RpcError {
    RpcError::InvalidRequest { field: field.to_owned(), problem: problem.to_string() }
}
