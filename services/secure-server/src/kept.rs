//! Results that the ledger keeps, and its errors as clients are told them.

use concilium_privacy::{Cap, Clock as _, LedgerError, Lookup, Refusal, SystemClock};
use concilium_rpc::status::RpcError;

use crate::answer::Answer;
use crate::context::Context;
use crate::models::internal;
use crate::waiting::Waiting;

/// Runs what asks the ledger, for a caller, on a thread of its own kind: a store that hangs must not hold up
/// the threads that serve all other calls.
pub(crate) async fn with_ledger<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, RpcError> + Send + 'static,
) -> Result<T, RpcError> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(ask)).await.map_err(internal)?
}

/// How an error of the ledger is told to the client.
pub(crate) fn ledger_error(error: LedgerError) -> RpcError {
    match error {
        LedgerError::Refused(refusal) => refused(&refusal),
        LedgerError::Stopped { task, reason } => RpcError::LedgerDiverged { task, problem: reason },
        LedgerError::Conflict { key } => RpcError::RequestConflict { request_id: key.request.to_string() },
        LedgerError::ResultExpired { key } => RpcError::ResultExpired { request_id: key.request.to_string() },
        LedgerError::InProgress { key } | LedgerError::AlreadyReleased { key } => {
            RpcError::InProgress { request_id: key.request.to_string() }
        }
        // Where it is, and why it fails, is for its operator only.
        LedgerError::Storage { action, .. } => {
            tracing::error!(%error, reason = %reason(&error), "the ledger cannot be used");
            RpcError::LedgerUnavailable { action: action.to_owned() }
        }
        LedgerError::InUse { .. } => {
            tracing::error!(%error, "the ledger cannot be used");
            RpcError::LedgerUnavailable { action: "be used".to_owned() }
        }
        other => internal(other),
    }
}

/// What caused an error, or nothing.
fn reason(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

/// A refusal of the ledger: one that time heals names the time.
fn refused(refusal: &Refusal) -> RpcError {
    let (task, epoch) = (refusal.task.clone(), refusal.epoch);
    let (needed_nano_rho, left_nano_rho) = (refusal.needed.units(), refusal.left.units());
    if let Some(retry_at_ms) = refusal.retry_at_ms {
        let retry_after_ms = retry_at_ms.saturating_sub(SystemClock.now_ms());
        return RpcError::BudgetPaced {
            task,
            epoch,
            needed_nano_rho,
            left_nano_rho,
            retry_after_ms,
            retry_at_unix_ms: retry_at_ms,
        };
    }
    let scope = match &refusal.cap {
        Cap::TaskEpoch => "task_epoch",
        Cap::Client => "client",
        Cap::ClientAllTasks => "client_all_tasks",
        Cap::Window => "window",
        Cap::Owner { .. } => "owner",
        _ => "other",
    };
    let (scope, cap) = (scope.to_owned(), refusal.cap.to_string());
    RpcError::BudgetExhausted { task, epoch, scope, cap, needed_nano_rho, left_nano_rho }
}

/// The kept result of a request that all three servers have committed.
pub(crate) fn replay(context: &Context, waiting: &Waiting) -> Result<Answer, RpcError> {
    match context.ledger.lookup(&waiting.key, &waiting.content).map_err(ledger_error)? {
        Lookup::Held { result, .. } => {
            let answer = Answer::from_stored(&result)?;
            context.ledger.mark_released(std::slice::from_ref(&waiting.key), &[]).map_err(ledger_error)?;
            Ok(answer)
        }
        Lookup::New => Err(internal("the kept result is gone")),
    }
}
