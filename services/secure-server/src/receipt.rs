//! Receipts: what clients are told about their answers, under this server's signature.

use concilium_mpc::release::ReleasedComponents;
use concilium_privacy::convert::{actual_standard_deviation, delta_value, epsilon};
use concilium_privacy::{ClientSpending, Ledger, LedgerError, NanoRho, Release, SpendingWindow, TaskPolicy};
use concilium_rpc::receipt::issue;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::caller_budget::Scope;
use concilium_rpc::v1::{self, CallerBudget, EvaluationStatistics, ResultEncoding, SignedReceipt};

use crate::answer::{Answer, RunId};
use crate::context::Context;
use crate::kept::ledger_error;
use crate::models::{Entry, digest_of, internal};
use crate::run::{Active, Price};
use crate::task::Task;
use crate::waiting::Waiting;

/// Cuts the batch's components into the requests' answers.
pub(crate) fn split(
    task: &Task,
    models: &[Entry],
    run_id: RunId,
    active: &[Active],
    prices: &[Price],
    released: ReleasedComponents,
    statistics: &EvaluationStatistics,
) -> Vec<Answer> {
    let (encoding, row_bytes) = match task.policy.release {
        Release::Label => (ResultEncoding::BooleanU16, 2),
        Release::ConfidentLabel => (ResultEncoding::ConfidentU16, 2),
        _ => (ResultEncoding::ArithmeticU64, 8 * task.policy.bins),
    };
    let owners = models.iter().map(|entry| &entry.key.owner).collect::<std::collections::BTreeSet<_>>().len();
    let mut start = 0;
    active
        .iter()
        .zip(prices)
        .map(|(active, price)| {
            let Waiting { key, rows, .. } = &active.waiting;
            let range = start..start + *rows as usize * row_bytes;
            start = range.end;
            let charged = price.total;
            let receipt = v1::Receipt {
                task: key.task.clone(),
                epoch: key.epoch,
                request_id: key.request.0.to_vec().into(),
                release: task.wire_release().into(),
                rows: *rows,
                classes: task.policy.bins as u32,
                mechanism: Some(task.wire_mechanism()),
                charged_nano_rho: charged.units(),
                consenting_rows: price.consenting_rows,
                models: models.len() as u32,
                owners: owners as u32,
                model_set_digest: digest_of(models).to_vec().into(),
                encoding: encoding.into(),
                replayed: false,
                statistics: Some(*statistics),
                client: key.client.clone(),
                policy_digest: task.digest.to_vec().into(),
                privacy_unit: task.wire_unit().into(),
                models_per_owner: task.policy.models_per_owner,
                noise_standard_deviation: actual_standard_deviation(task.policy.mechanism),
                delta: delta_value(task.policy.delta),
                charged_epsilon: epsilon_of(charged, task),
                // What the caller has left is known when the receipt is sent.
                ..v1::Receipt::default()
            };
            let components = ReleasedComponents {
                own: released.own[range.clone()].to_vec(),
                next: released.next[range].to_vec(),
            };
            Answer { run: run_id, receipt, components }
        })
        .collect()
}

/// The receipt of an answer that is about to be sent: with what its client has spent and has left, and
/// signed with the certificate that is in use now.
pub(crate) fn sign(context: &Context, answer: &Answer) -> Result<SignedReceipt, RpcError> {
    let mut receipt = answer.receipt.clone();
    let task = context.tasks.get(&receipt.task)?;
    let ledger = &context.ledger;
    let spent =
        ledger.spent_by_client(&receipt.task, receipt.epoch, &receipt.client).map_err(ledger_error)?;
    receipt.caller_budgets = caller_budgets(ledger.as_ref(), task, &spent).map_err(ledger_error)?;
    let spent = spent.task_epoch.rho;
    receipt.caller_spent_nano_rho = spent.units();
    receipt.caller_spent_epsilon = epsilon_of(spent, task);
    let ReleasedComponents { own, next } = &answer.components;
    let now_ms = i64::try_from(context.clock.now_ms()).unwrap_or(i64::MAX);
    issue(&context.tls.current(), receipt, own, next, now_ms).map_err(internal)
}

/// What is left of the caps that bind the caller.
fn caller_budgets(
    ledger: &dyn Ledger,
    task: &Task,
    spent: &ClientSpending,
) -> Result<Vec<CallerBudget>, LedgerError> {
    let TaskPolicy { epoch, cap_per_client, cap_per_client_all_tasks, window, .. } = &task.policy;
    let mut caps = Vec::new();
    caps.extend(cap_per_client.map(|cap| (Scope::TaskEpoch, cap, spent.task_epoch.rho)));
    caps.extend(cap_per_client_all_tasks.map(|cap| (Scope::AllTasks, cap, spent.all_tasks.rho)));
    if let Some(SpendingWindow { rho, seconds }) = *window {
        caps.push((Scope::Window, rho, ledger.spent_in_window(task.name(), *epoch, seconds)?));
    }
    let budgets = caps.into_iter().map(|(scope, cap, spent)| CallerBudget {
        scope: scope.into(),
        cap_nano_rho: cap.units(),
        left_nano_rho: cap.saturating_sub(spent).units(),
    });
    Ok(budgets.collect())
}

/// Epsilon of a spending at the task's delta, for reading; infinite where there is none.
fn epsilon_of(spent: NanoRho, task: &Task) -> f64 {
    if spent == NanoRho::ZERO {
        return 0.0;
    }
    epsilon(spent, task.policy.delta).unwrap_or(f64::INFINITY)
}
