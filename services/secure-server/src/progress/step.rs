//! The steps of a batch on one server, and the time that each takes.

use std::fmt;
use std::time::{Duration, Instant};

use concilium_mpc::Stage;
use tracing::span::EnteredSpan;

use crate::metrics;

/// A step of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The servers compare their ledgers, before the first batch of a connection.
    Ledgers,
    /// Server 0 plans and waits for the other servers' answers; the others check the plan.
    Plan,
    /// Servers 1 and 2 compare the component that they share.
    Digests,
    /// Servers 1 and 2 wait for the leader to start the batch.
    Start,
    /// Noise is taken from the pool.
    NoisePool,
    /// The multi-party computation.
    Compute(Stage),
    /// The ledger makes the charges durable.
    Commit,
    /// The servers tell each other that they have committed.
    Barrier,
    /// The results leave.
    Release,
    /// The servers tell each other how a model's self-test went.
    Verdict,
}

impl Step {
    /// The step's name as a label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Step::Ledgers => "ledgers",
            Step::Plan => "plan",
            Step::Digests => "digests",
            Step::Start => "start",
            Step::NoisePool => "noise-pool",
            Step::Compute(stage) => stage.name(),
            Step::Commit => "ledger-commit",
            Step::Barrier => "barrier",
            Step::Release => "release",
            Step::Verdict => "verdict",
        }
    }

    /// What a peer is to do that is waited for in this step.
    pub(crate) fn due(self) -> &'static str {
        match self {
            Step::Ledgers => "show its ledger",
            Step::Plan => "answer the plan",
            Step::Digests => "send its component digests",
            Step::Start => "start the batch",
            Step::Barrier => "commit the batch",
            Step::Verdict => "tell its verdict of the self-test",
            _ => "take a message",
        }
    }

    /// What of this server is waited for in this step.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Step::NoisePool => "its own noise",
            Step::Commit => "its own disk",
            _ => "its links to the other servers",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Compute(stage) => stage.fmt(formatter),
            other => formatter.write_str(other.name()),
        }
    }
}

/// Times the steps of the lane's batches, one after the other. On the lane's thread.
#[derive(Default)]
pub(crate) struct Steps {
    current: Option<Current>,
}

struct Current {
    step: Step,
    since: Instant,
    /// Part of the time in which messages of the other servers were waited for.
    waited: Duration,
    /// Left when the next step begins.
    _span: EnteredSpan,
}

impl Steps {
    /// Ends the step before and begins this one.
    pub(crate) fn enter(&mut self, step: Step) {
        self.end();
        // At this level, so that a server that logs news only does not pay for it.
        let span = match step {
            Step::Compute(stage) => {
                let layer = stage.layer();
                tracing::debug_span!("step", step = step.name(), layer)
            }
            _ => tracing::debug_span!("step", step = step.name()),
        };
        self.current =
            Some(Current { step, since: Instant::now(), waited: Duration::ZERO, _span: span.entered() });
    }

    /// Notes that the present step has waited for another server.
    pub(crate) fn note_wait(&mut self, waited: Duration) {
        if let Some(current) = &mut self.current {
            current.waited += waited;
        }
    }

    /// Ends the present step.
    pub(crate) fn end(&mut self) {
        if let Some(Current { step, since, waited, .. }) = self.current.take() {
            metrics::record_step(step.name(), since.elapsed(), waited);
        }
    }

    /// The present step.
    pub(crate) fn current(&self) -> Option<Step> {
        self.current.as_ref().map(|current| current.step)
    }
}
