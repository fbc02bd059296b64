//! Deletes parts of answers that were kept for repeats for long enough.

use std::sync::Arc;
use std::time::Duration;

use concilium_privacy::{Ledger, LedgerError};

use crate::context::Context;

/// How often the ledger is looked through.
const INTERVAL: Duration = Duration::from_secs(86_400);

const DAY_MS: u64 = 86_400_000;

/// Deletes at the start and once a day what is older than the configuration allows.
pub(crate) async fn follow(context: Arc<Context>) {
    loop {
        let (ledger, now_ms) = (Arc::clone(&context.ledger), context.clock.now_ms());
        let days = context.limits.answers_kept_days;
        let pruned = tokio::task::spawn_blocking(move || prune(ledger.as_ref(), now_ms, days)).await;
        match pruned {
            Ok(Ok(0)) => {}
            Ok(Ok(answers)) => {
                tracing::info!(server = %context.here, answers, days, "old answers were deleted")
            }
            Ok(Err(error)) => {
                tracing::error!(server = %context.here, %error, "old answers could not be deleted; tried again in a day");
            }
            // The runtime ends.
            Err(_) => return,
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Deletes the parts of answers that are older than `days`; returns how many.
fn prune(ledger: &dyn Ledger, now_ms: u64, days: u32) -> Result<u64, LedgerError> {
    ledger.prune_results(now_ms.saturating_sub(u64::from(days).saturating_mul(DAY_MS)))
}
