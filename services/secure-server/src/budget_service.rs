//! What was spent.

use std::collections::BTreeMap;
use std::sync::Arc;

use concilium_privacy::convert::{delta_value, epsilon};
use concilium_privacy::{Fits, LedgerError, NanoRho, Participant, Spending};
use concilium_rpc::identity::{Identity, Role};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::budget_server::Budget;
use concilium_rpc::v1::{
    BudgetStop, BudgetWindow, ClientSpending, ExportLogRequest, ExportLogResponse, GetBudgetRequest,
    GetBudgetResponse, OwnerBudget, TaskBudget,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use crate::context::Context;
use crate::export;
use crate::kept::{ledger_error, with_ledger};
use crate::models::internal;
use crate::owners;
use crate::task::Task;

/// Serves operators, and clients and owners within their own scope.
#[derive(Clone)]
pub struct BudgetService {
    context: Arc<Context>,
}

impl BudgetService {
    /// The service of this server.
    pub fn new(context: Arc<Context>) -> Self {
        BudgetService { context }
    }

    /// The budgets of the task `wanted`, or of all when it is empty.
    fn budgets(&self, wanted: &str, caller: &Identity) -> Result<GetBudgetResponse, RpcError> {
        let tasks = self.context.tasks.all().filter(|task| wanted.is_empty() || task.name() == wanted);
        let tasks = tasks.map(|task| self.task_budget(task, caller)).collect::<Result<_, _>>()?;
        let head = self.context.ledger.head().map_err(ledger_error)?;
        Ok(GetBudgetResponse {
            party: self.context.here.number() as u32,
            tasks,
            ledger_head_sequence: head.entries,
            ledger_head_hash: head.hash.to_vec().into(),
        })
    }

    fn task_budget(&self, task: &Task, caller: &Identity) -> Result<TaskBudget, RpcError> {
        let (ledger, epoch) = (self.context.ledger.as_ref(), task.policy.epoch);
        let spending = ledger.spent(task.name(), epoch).map_err(ledger_error)?;
        let owners = self.owners(task, &spending, caller);
        let Spending { total, mut by_client, .. } = spending;
        let own = by_client.get(caller.name()).copied().unwrap_or_default();
        let shown = if caller.role() == Role::Client { own } else { total };
        match caller.role() {
            Role::Operator => {}
            // One that has spent nothing on this task may have on others.
            Role::Client => by_client = BTreeMap::from([(caller.name().to_owned(), own)]),
            _ => by_client.clear(),
        }
        let clients = by_client.into_iter().map(|(client, total)| {
            let all = ledger.spent_by_client(task.name(), epoch, &client)?.all_tasks.rho.units();
            let spent_nano_rho = total.rho.units();
            Ok(ClientSpending { client, spent_nano_rho, spent_all_tasks_nano_rho: all })
        });
        let clients = clients.collect::<Result<_, LedgerError>>().map_err(ledger_error)?;
        let spent_epsilon = if shown.rho == NanoRho::ZERO {
            0.0
        } else {
            epsilon(shown.rho, task.policy.delta).map_err(internal)?
        };
        let (epoch_basis, epoch_attested_by) = task.wire_declaration();
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
            window: self.window(task).map_err(ledger_error)?,
            owners,
            cap_per_client_all_tasks_nano_rho: task.policy.cap_per_client_all_tasks.map(NanoRho::units),
            stopped: self
                .context
                .watch
                .stop_of(task.name())
                .map(|stop| BudgetStop { reason: stop.reason, since_unix_ms: signed(stop.since_ms) }),
            epoch_basis: epoch_basis.into(),
            epoch_attested_by,
        })
    }

    /// The bounds of owners that the caller may see.
    fn owners(&self, task: &Task, spending: &Spending, caller: &Identity) -> Vec<OwnerBudget> {
        let shown = |owner: &str| match caller.role() {
            Role::Operator => true,
            Role::Owner => owner == caller.name(),
            _ => false,
        };
        owners::participants(&self.context.models.ready(task.name()))
            .into_iter()
            .filter(|participant| shown(&participant.owner))
            .filter_map(|Participant { owner, cap }| {
                let spent_nano_rho = owners::spent_on(spending, &owner).units();
                Some(OwnerBudget { owner, cap_nano_rho: cap?.units(), spent_nano_rho })
            })
            .collect()
    }

    fn window(&self, task: &Task) -> Result<Option<BudgetWindow>, LedgerError> {
        let Some(window) = task.policy.window else { return Ok(None) };
        let row = NanoRho::new(task.row_cost_nano_rho());
        let state = self.context.ledger.window(task.name(), task.policy.epoch, window, row)?;
        Ok(Some(BudgetWindow {
            seconds: window.seconds,
            cap_nano_rho: window.rho.units(),
            spent_nano_rho: state.spent.units(),
            next_row_at_unix_ms: match state.fits {
                Fits::Now => None,
                Fits::At(time_ms) => Some(signed(time_ms)),
                // A window that pays for no row is no policy.
                Fits::Never => Some(i64::MAX),
            },
        }))
    }
}

/// A time as it travels.
fn signed(time_ms: u64) -> i64 {
    i64::try_from(time_ms).unwrap_or(i64::MAX)
}

/// The noise of a task in words.
pub(crate) fn describe(task: &Task) -> String {
    use concilium_privacy::Mechanism;
    match task.policy.mechanism {
        Mechanism::DiscreteGaussian { sigma } => format!("discrete Gaussian, sigma {sigma}"),
        Mechanism::DiscreteLaplace { scale } => format!("discrete Laplace, scale {scale}"),
        other => format!("{other:?}"),
    }
}

#[async_trait]
impl Budget for BudgetService {
    type ExportLogStream = ReceiverStream<Result<ExportLogResponse, Status>>;

    async fn export_log(
        &self,
        request: Request<ExportLogRequest>,
    ) -> Result<Response<Self::ExportLogStream>, Status> {
        let caller = self.context.allowed.authorise(&request, &[Role::Operator])?;
        tracing::info!(server = %self.context.here, %caller, "the ledger's log is exported");
        Ok(Response::new(ReceiverStream::new(export::stream(Arc::clone(&self.context)))))
    }

    async fn get_budget(
        &self,
        request: Request<GetBudgetRequest>,
    ) -> Result<Response<GetBudgetResponse>, Status> {
        let roles = [Role::Operator, Role::Client, Role::Owner];
        let caller = self.context.allowed.authorise(&request, &roles)?;
        let wanted = request.into_inner().task;
        if !wanted.is_empty() {
            self.context.tasks.get(&wanted)?;
        }
        let service = self.clone();
        Ok(Response::new(with_ledger(move || service.budgets(&wanted, &caller)).await?))
    }
}
