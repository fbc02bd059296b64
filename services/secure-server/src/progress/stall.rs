//! Reports waits that take too long, with the step and the server waited for.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;
use crate::metrics;

use super::{LaneProgress, Wait};

/// Bounds of the pause between two looks.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// What was reported of the present wait.
struct Reported {
    wait: Wait,
    /// When it is reported again: twice as late each time, so that a long stall does not fill the log.
    again: Duration,
}

/// Looks at the lanes and reports waits longer than `threshold`. Runs until it is dropped.
pub async fn watch(context: Arc<Context>, threshold: Duration) {
    let look = (threshold / 4).clamp(SHORTEST_LOOK, LONGEST_LOOK);
    let mut reported: Vec<Option<Reported>> = context.lane.progress.iter().map(|_| None).collect();
    loop {
        tokio::time::sleep(look).await;
        for (progress, reported) in context.lane.progress.iter().zip(&mut reported) {
            report(&context, progress, reported, threshold);
        }
    }
}

/// Reports the present wait of one lane, if there is something new to say.
fn report(context: &Context, progress: &LaneProgress, reported: &mut Option<Reported>, threshold: Duration) {
    let wait = progress.current_wait();
    let same = |before: &Reported| wait.is_some_and(|now| now.number == before.wait.number);
    if let Some(ended) = reported.take_if(|before| !same(before)) {
        tracing::info!(
            server = %context.here, awaited = ended.wait.awaited(), step = %ended.wait,
            waited_ms = ended.wait.waited().as_millis() as u64,
            "the wait has ended"
        );
    }
    let Some(wait) = wait else { return };
    let waited = wait.waited();
    if waited < reported.as_ref().map_or(threshold, |before| before.again) {
        return;
    }
    let (awaited, waited_ms) = (wait.awaited(), waited.as_millis() as u64);
    let session = progress.session();
    tracing::warn!(
        server = %context.here, awaited, step = %wait, session, waited_ms,
        "waits for {awaited} in the step {wait}"
    );
    if reported.is_none() {
        metrics::count_stall(wait.step.name(), wait.peer);
    }
    *reported = Some(Reported { wait, again: waited * 2 });
}
