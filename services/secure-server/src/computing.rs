//! The lanes on which batches are computed: a thread each, so that one batch computes while another waits for
//! a message, for the disk, or for the other servers to charge.
//!
//! A thread owns its lane and is always in a call of it, computing or waiting for work: what a batch has left
//! in the transport when it is done here leaves all the same.

use std::thread::{Scope, panicking};
use std::time::Duration;

use concilium_rpc::lane::{Interrupt, Lane, LaneError};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::context::Context;
use crate::evaluation::{Computation, Outcome, Tested, answer_tested, evaluate};
use crate::link::Failure;
use crate::progress::Steps;
use crate::run::Batch;

/// What a lane's thread is to do.
enum Command {
    /// To establish the links that are missing.
    Connect(Duration),
    /// To drop the links.
    Disconnect,
    /// To compute a batch, from its beginning or from a threshold test that was charged for.
    Compute(Box<Batch>, Option<Box<Tested>>),
}

/// What a lane's thread has done.
enum Done {
    Connected(Result<(), Box<LaneError>>),
    Disconnected,
    Computed(Computed),
}

/// How a computation ended.
pub(crate) struct Computed {
    pub(crate) batch: Box<Batch>,
    pub(crate) outcome: Result<Outcome, Failure>,
}

/// A lane's number, and what its thread has done; nothing if it has panicked.
type Report = (usize, Option<Done>);

/// The threads, as the one sees them that gives them work. They end when this is dropped.
pub(crate) struct Computing {
    /// That of lane 1 comes first.
    workers: Vec<Worker>,
    reports: UnboundedReceiver<Report>,
}

struct Worker {
    commands: UnboundedSender<Command>,
    interrupt: Interrupt,
}

impl Computing {
    /// Starts a thread for each of `lanes`, of which the first is lane 1.
    ///
    /// # Errors
    /// What the system says when there is no thread left.
    pub(crate) fn start<'scope, 'c: 'scope>(
        scope: &'scope Scope<'scope, '_>,
        context: &'c Context,
        lanes: Vec<Lane>,
    ) -> std::io::Result<Self> {
        let (sender, reports) = mpsc::unbounded_channel();
        let mut workers = Vec::new();
        for (place, lane) in lanes.into_iter().enumerate() {
            let number = place + 1;
            let (commands, todo) = mpsc::unbounded_channel();
            workers.push(Worker { commands, interrupt: lane.interrupt() });
            let reporter = Reporter { lane: number, reports: sender.clone() };
            std::thread::Builder::new()
                .name(format!("lane-{number}"))
                .spawn_scoped(scope, move || work(lane, context, todo, &reporter))?;
        }
        Ok(Computing { workers, reports })
    }

    /// How many lanes there are.
    pub(crate) fn lanes(&self) -> usize {
        self.workers.len()
    }

    /// Establishes the missing links of the first `lanes` lanes, each within `patience`, while `control`
    /// waits.
    ///
    /// # Errors
    /// The first failure; what could be established stays.
    pub(crate) fn connect(
        &mut self,
        control: &mut Lane,
        lanes: usize,
        patience: Duration,
    ) -> Result<(), Box<LaneError>> {
        for worker in &self.workers[..lanes] {
            worker.command(Command::Connect(patience));
        }
        let mut outcome = Ok(());
        for _ in 0..lanes {
            if let (_, Done::Connected(Err(error))) = control.block_on(self.next_report())
                && outcome.is_ok()
            {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// Ends what is computed and drops all links.
    pub(crate) fn disconnect(&mut self, control: &mut Lane) {
        for worker in &self.workers {
            worker.interrupt.raise();
            worker.command(Command::Disconnect);
        }
        let mut left = self.workers.len();
        while left > 0 {
            // What was computed meanwhile is dropped, which tells its clients to ask again.
            if let (_, Done::Disconnected) = control.block_on(self.next_report()) {
                left -= 1;
            }
        }
    }

    /// Has a batch computed on a lane that is free.
    pub(crate) fn compute(&self, lane: usize, batch: Box<Batch>, tested: Option<Box<Tested>>) {
        self.workers[lane - 1].command(Command::Compute(batch, tested));
    }

    /// The next lane that has finished a computation. Nothing is lost if this is dropped before it finishes.
    pub(crate) async fn next_computed(&mut self) -> (usize, Computed) {
        loop {
            if let (lane, Done::Computed(computed)) = self.next_report().await {
                return (lane, computed);
            }
        }
    }

    async fn next_report(&mut self) -> (usize, Done) {
        match self.reports.recv().await {
            Some((lane, Some(done))) => (lane, done),
            // Without one of its threads a server would answer some requests only: better that its supervisor
            // starts it again.
            Some((lane, None)) => panic!("the thread of lane {lane} panicked"),
            None => panic!("the threads of the lanes have ended"),
        }
    }
}

impl Worker {
    fn command(&self, command: Command) {
        // A thread that has ended has said so.
        let _ = self.commands.send(command);
    }
}

/// Says what a thread has done, and if it panics.
struct Reporter {
    lane: usize,
    reports: UnboundedSender<Report>,
}

impl Reporter {
    fn tell(&self, done: Done) {
        let _ = self.reports.send((self.lane, Some(done)));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if panicking() {
            let _ = self.reports.send((self.lane, None));
        }
    }
}

/// A lane's thread: carries commands out until there will be no more.
fn work(mut lane: Lane, context: &Context, mut todo: UnboundedReceiver<Command>, reporter: &Reporter) {
    while let Some(command) = lane.block_on(todo.recv()) {
        reporter.tell(match command {
            Command::Connect(patience) => Done::Connected(lane.connect(patience).map_err(Box::new)),
            Command::Disconnect => {
                lane.disconnect();
                Done::Disconnected
            }
            Command::Compute(batch, tested) => {
                let outcome = compute(&mut lane, reporter.lane, context, &batch, tested);
                Done::Computed(Computed { batch, outcome })
            }
        });
    }
}

fn compute(
    lane: &mut Lane,
    number: usize,
    context: &Context,
    batch: &Batch,
    tested: Option<Box<Tested>>,
) -> Result<Outcome, Failure> {
    let _inside = batch.span.enter();
    let mut steps = Steps::default();
    let progress = &context.lane.progress[number];
    let patience = Duration::from_millis(context.limits.peer_timeout_ms);
    let mut computation = Computation { lane, steps: &mut steps, progress, patience };
    let outcome = match tested {
        None => evaluate(&mut computation, context, batch),
        Some(tested) => answer_tested(&mut computation, context, batch, *tested),
    };
    steps.end();
    outcome
}
