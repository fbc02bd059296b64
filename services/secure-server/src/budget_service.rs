//! What operators read: spending and health.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use concilium_privacy::convert::{delta_value, epsilon};
use concilium_privacy::{NanoRho, Spending};
use concilium_rpc::identity::{Identity, Role};
use concilium_rpc::status::RpcError;
use concilium_rpc::tls::TlsMaterial;
use concilium_rpc::v1::budget_server::Budget;
use concilium_rpc::v1::{
    ClientSpending, GetBudgetRequest, GetBudgetResponse, GetStatusRequest, GetStatusResponse, ModelState,
    TaskBudget, TaskStatus,
};
use tonic::{Request, Response, Status, async_trait};

use crate::context::Context;
use crate::kept::ledger_error;
use crate::models::internal;
use crate::task::Task;

/// Serves operators, and clients and owners within their own scope.
pub struct BudgetService {
    context: Arc<Context>,
    tls: TlsMaterial,
}

impl BudgetService {
    /// The service of this server.
    pub fn new(context: Arc<Context>, tls: TlsMaterial) -> Self {
        BudgetService { context, tls }
    }

    fn task_budget(&self, task: &Task, caller: &Identity) -> Result<TaskBudget, RpcError> {
        let Spending { total, by_client } =
            self.context.ledger.spent(task.name(), task.policy.epoch).map_err(ledger_error)?;
        let own = by_client.get(caller.name()).copied().unwrap_or_default();
        let shown = if caller.role() == Role::Client { own } else { total };
        let clients = by_client
            .into_iter()
            .filter(|(client, _)| match caller.role() {
                Role::Operator => true,
                Role::Client => client == caller.name(),
                _ => false,
            })
            .map(|(client, total)| ClientSpending { client, spent_nano_rho: total.rho.units() })
            .collect();
        let spent_epsilon = if shown.rho == NanoRho::ZERO {
            0.0
        } else {
            epsilon(shown.rho, task.policy.delta).map_err(internal)?
        };
        Ok(TaskBudget {
            task: task.name().to_owned(),
            epoch: task.policy.epoch,
            spent_nano_rho: (caller.role() != Role::Client).then(|| total.rho.units()),
            cap_nano_rho: task.policy.cap_total.units(),
            cap_per_client_nano_rho: task.policy.cap_per_client.map(NanoRho::units),
            cost_nano_rho_per_row: task.row_cost_nano_rho(),
            delta: delta_value(task.policy.delta),
            spent_epsilon,
            requests: shown.requests,
            rows: shown.rows,
            clients,
            mechanism: describe(task),
        })
    }
}

fn describe(task: &Task) -> String {
    use concilium_privacy::Mechanism;
    match task.policy.mechanism {
        Mechanism::DiscreteGaussian { sigma } => format!("discrete Gaussian, sigma {sigma}"),
        Mechanism::DiscreteLaplace { scale } => format!("discrete Laplace, scale {scale}"),
        other => format!("{other:?}"),
    }
}

#[async_trait]
impl Budget for BudgetService {
    async fn get_budget(
        &self,
        request: Request<GetBudgetRequest>,
    ) -> Result<Response<GetBudgetResponse>, Status> {
        let roles = [Role::Operator, Role::Client, Role::Owner];
        let caller = self.context.allowed.authorise(&request, &roles)?;
        let wanted = &request.get_ref().task;
        if !wanted.is_empty() {
            self.context.tasks.get(wanted)?;
        }
        let tasks = self
            .context
            .tasks
            .all()
            .filter(|task| wanted.is_empty() || task.name() == wanted)
            .map(|task| self.task_budget(task, &caller))
            .collect::<Result<Vec<_>, _>>()?;
        let head = self.context.ledger.head().map_err(ledger_error)?;
        Ok(Response::new(GetBudgetResponse {
            party: self.context.here.number() as u32,
            tasks,
            ledger_head_sequence: head.entries,
            ledger_head_hash: head.hash.to_vec().into(),
        }))
    }

    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        self.context.allowed.authorise(&request, &[Role::Operator])?;
        let tasks = self.context.tasks.all().map(|task| {
            let models = self.context.models.list(|key| key.task == task.name());
            let count = |state| models.iter().filter(|entry| entry.state == state).count() as u32;
            let ready = models.iter().filter(|entry| entry.state == ModelState::Ready);
            let owners: std::collections::BTreeSet<_> = ready.map(|entry| &entry.key.owner).collect();
            TaskStatus {
                task: task.name().to_owned(),
                epoch: task.policy.epoch,
                models_staged: count(ModelState::Staged),
                models_ready: count(ModelState::Ready),
                models_rejected: count(ModelState::Rejected),
                owners_ready: owners.len() as u32,
                queued_requests: self.context.room.count(task.name()) as u32,
                policy_digest: task.digest.to_vec().into(),
            }
        });
        let expires = self.tls.expires().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Response::new(GetStatusResponse {
            party: self.context.here.number() as u32,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.context.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            lanes: vec![self.context.lane.to_wire()],
            tasks: tasks.collect(),
            certificate_expires_unix_ms: i64::try_from(expires.as_millis()).unwrap_or(i64::MAX),
        }))
    }
}
