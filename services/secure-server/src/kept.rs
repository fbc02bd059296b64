//! Results that the ledger keeps, and its errors as clients are told them.

use concilium_privacy::{LedgerError, Lookup};
use concilium_rpc::status::RpcError;

use crate::answer::Answer;
use crate::context::Context;
use crate::models::internal;
use crate::waiting::Waiting;

/// How an error of the ledger is told to the client.
pub(crate) fn ledger_error(error: LedgerError) -> RpcError {
    match error {
        LedgerError::Refused(refusal) => RpcError::BudgetExhausted {
            task: refusal.task.clone(),
            epoch: refusal.epoch,
            cap: refusal.cap.to_string(),
            needed_nano_rho: refusal.needed.units(),
            left_nano_rho: refusal.left.units(),
        },
        LedgerError::Conflict { key } | LedgerError::ResultExpired { key } => {
            RpcError::RequestConflict { request_id: key.request.to_string() }
        }
        LedgerError::InProgress { key } | LedgerError::AlreadyReleased { key } => {
            RpcError::InProgress { request_id: key.request.to_string() }
        }
        other => internal(other),
    }
}

/// The kept result of a request that all three servers have committed.
pub(crate) fn replay(context: &Context, waiting: &Waiting) -> Result<Answer, RpcError> {
    match context.ledger.lookup(&waiting.key, &waiting.content).map_err(ledger_error)? {
        Lookup::Held { result, .. } => {
            let answer = Answer::from_stored(&result)?;
            context.ledger.mark_released(std::slice::from_ref(&waiting.key)).map_err(ledger_error)?;
            Ok(answer)
        }
        Lookup::New => Err(internal("the kept result is gone")),
    }
}
