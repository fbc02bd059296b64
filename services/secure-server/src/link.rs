//! The lane on which the servers agree, during one connection, with what a server keeps of it.

use std::future::pending;
use std::time::{Duration, Instant};

use concilium_mpc::{Neighbour, PartyIndex};
use concilium_rpc::lane::{Lane, LaneError, LaneEvent};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{
    Abort, Arrived, Barrier, ComponentDigests, Heartbeat, Incomplete, LaneFrame, ModelWaiting, Released,
};

use crate::answer::RunId;
use crate::arrivals::{Arrivals, named, to_wire};
use crate::context::Context;
use crate::evaluation::Computation;
use crate::kept::replay;
use crate::log::join_trace;
use crate::metrics;
use crate::models::ModelKey;
use crate::progress::{Step, Steps};
use crate::self_test::TestKey;
use crate::underway::Underway;

/// Why a batch, and with it the present links, were given up.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What happened, naming the server and the step.
    pub(crate) reason: String,
}

impl Failure {
    /// A server did not do what the program of all three says.
    pub(crate) fn fault(reason: String) -> Self {
        Failure { reason }
    }
}

/// The lane during one connection.
pub(crate) struct Link<'a> {
    pub(crate) lane: &'a mut Lane,
    pub(crate) context: &'a Context,
    /// The last session of this connection; keys are new with each connection.
    session: u64,
    /// Digests of a batch whose plan has not arrived here yet: the other follower got it sooner.
    pub(crate) early: Option<ComponentDigests>,
    /// On server 0: the requests that the other servers have.
    pub(crate) arrivals: Arrivals,
    /// Times the steps of agreeing, charging and releasing.
    pub(crate) steps: Steps,
    /// When the servers began to agree on the present batch.
    pub(crate) planned: Instant,
    /// The batches that are agreed and not released yet.
    pub(crate) underway: Underway<'a>,
    /// When the others were last told what had come here.
    told: Instant,
    /// Why this server takes no further batch over this connection.
    pub(crate) closing: Option<&'static str>,
    /// When each neighbour was last heard, and when they were last told that this server lives.
    pulse: Pulse,
}

/// How often a server tells its neighbours between batches that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// Shortest silence between batches that ends a connection, however short a time the configuration
/// allows a peer within a batch: some beats must fit into it.
const MINIMUM_SILENCE: Duration = Duration::from_secs(5);

/// Shortest pause between two looks at what has come, while batches are under way.
const NEWS_PAUSE: Duration = Duration::from_millis(1);

/// How long the reason of a failure is waited for.
const EXPLANATION: Duration = Duration::from_millis(100);

/// The two neighbours' signs of life.
struct Pulse {
    beaten: Instant,
    next_heard: Instant,
    previous_heard: Instant,
}

impl Pulse {
    fn now() -> Self {
        let now = Instant::now();
        Pulse { beaten: now, next_heard: now, previous_heard: now }
    }

    fn heard(&mut self, from: Neighbour) -> &mut Instant {
        match from {
            Neighbour::Next => &mut self.next_heard,
            Neighbour::Previous => &mut self.previous_heard,
        }
    }
}

impl<'a> Link<'a> {
    /// A lane that has just been connected, with the lanes on which batches are computed.
    pub(crate) fn new(lane: &'a mut Lane, underway: Underway<'a>, context: &'a Context) -> Self {
        Link {
            lane,
            context,
            session: 0,
            early: None,
            arrivals: Arrivals::default(),
            steps: Steps::default(),
            planned: Instant::now(),
            underway,
            told: Instant::now(),
            closing: None,
            pulse: Pulse::now(),
        }
    }

    /// Between batches: tells the neighbours that this server lives, and fails if one of them has been
    /// silent for longer than a server waits for a message within a batch. A cut cable ends no
    /// connection by itself; without this a server would call itself connected for many minutes.
    pub(crate) fn beat(&mut self) -> Result<(), Failure> {
        let limit = self.patience().max(MINIMUM_SILENCE);
        for neighbour in [Neighbour::Next, Neighbour::Previous] {
            if self.pulse.heard(neighbour).elapsed() > limit {
                let peer = self.server_at(neighbour);
                let reason = format!(
                    "{peer} is not connected any more: nothing was heard of it for {} s; look at that server \
                     and at the network between the two",
                    limit.as_secs()
                );
                self.context.lane.note_peer_error(self.context.here, peer.number() as u8, &reason);
                self.context.lane.note_error(reason.clone());
                return Err(Failure { reason });
            }
        }
        if self.pulse.beaten.elapsed() >= BEAT {
            self.pulse.beaten = Instant::now();
            self.send_both(Frame::Heartbeat(Heartbeat {}))?;
            self.flush()?;
        }
        Ok(())
    }

    /// Notes a sign of life between batches; within one every wait has a limit of its own.
    pub(crate) fn note_heard(&mut self, from: Neighbour) {
        *self.pulse.heard(from) = Instant::now();
    }

    /// The number of a new session.
    pub(crate) fn next_session(&mut self) -> u64 {
        self.session += 1;
        self.session
    }

    /// Takes the leader's number of a session, which must be new: a number that repeats would
    /// repeat its masks.
    pub(crate) fn note_session(&mut self, session: u64) -> Result<(), Failure> {
        if session <= self.session {
            return Err(Failure::fault(format!("the leader repeats session {session}")));
        }
        self.session = session;
        Ok(())
    }

    /// Which neighbour a server is.
    pub(crate) fn neighbour_of(&self, server: PartyIndex) -> Neighbour {
        if self.context.here.next() == server { Neighbour::Next } else { Neighbour::Previous }
    }

    /// How long this server waits for another one.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(self.context.limits.peer_timeout_ms)
    }

    /// Agrees on one batch with everything that is logged and measured of it under its span.
    pub(crate) fn in_batch<T>(
        &mut self,
        task: &str,
        session: u64,
        run_id: &RunId,
        run: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let context = self.context;
        let span = tracing::info_span!("batch", server = %context.here, task, session);
        let outcome = self.in_session(span, session, run_id, run);
        if outcome.is_err() {
            // The name came from the leader.
            metrics::count_failed_batch(context.tasks.get(task).map_or("", |task| task.name()));
        }
        outcome
    }

    /// As [`Self::in_batch`], for a self-test.
    pub(crate) fn in_self_test<T>(
        &mut self,
        model: &ModelKey,
        session: u64,
        run_id: &RunId,
        run: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let span = tracing::info_span!("self-test", server = %self.context.here, %model, session);
        self.in_session(span, session, run_id, run)
    }

    fn in_session<T>(
        &mut self,
        span: tracing::Span,
        session: u64,
        run_id: &RunId,
        run: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        join_trace(&span, run_id);
        let span = span.entered();
        self.context.lane.control().begin_batch(session, [Duration::ZERO; 3]);
        self.planned = Instant::now();
        let outcome = run(self);
        // Nobody beats meanwhile.
        self.pulse = Pulse::now();
        // Before the span that its steps are in.
        self.steps.end();
        drop(span);
        outcome
    }

    /// The server that a neighbour is.
    pub(crate) fn server_at(&self, neighbour: Neighbour) -> PartyIndex {
        match neighbour {
            Neighbour::Next => self.context.here.next(),
            Neighbour::Previous => self.context.here.previous(),
        }
    }

    pub(crate) fn fail(&self, error: &LaneError, step: &str) -> Failure {
        let reason = format!("{error} (this server waited for it to {step})");
        if let Some(peer) = error.peer() {
            self.context.lane.note_peer_error(self.context.here, peer, &reason);
        }
        // Before the requests under way are dropped, so that their clients are told the reason.
        self.context.lane.note_error(reason.clone());
        Failure { reason }
    }

    pub(crate) fn send(&mut self, to: Neighbour, frame: Frame) -> Result<(), Failure> {
        self.lane.send(to, frame).map_err(|error| self.fail(&error, "take a message"))
    }

    pub(crate) fn send_both(&mut self, frame: Frame) -> Result<(), Failure> {
        self.send(Neighbour::Next, frame.clone())?;
        self.send(Neighbour::Previous, frame)
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        let patience = self.patience();
        // Between batches the lane tells news, which is no step and nothing that a client waits for.
        let progress = self.context.lane.control();
        let _waiting = self.steps.current().map(|step| progress.wait(step, None, None));
        self.lane.flush(patience).map_err(|error| self.fail(&error, "take a message"))
    }

    /// How long what comes here may wait until it is looked at. While batches are under way it is looked at
    /// together: a batch could not begin much sooner, and each look takes time from those.
    pub(crate) fn until_news(&self) -> Duration {
        match self.underway.is_empty() {
            true => Duration::ZERO,
            false => NEWS_PAUSE.saturating_sub(self.told.elapsed()),
        }
    }

    /// Tells the others what they have not been told.
    pub(crate) fn tell(&mut self) -> Result<(), Failure> {
        self.told = Instant::now();
        let replayed = to_wire(self.context.room.take_replayed());
        if !replayed.is_empty() {
            self.send_both(Frame::Released(Released { requests: replayed }))?;
        }
        let leader = PartyIndex::ALL[0];
        let arrived = to_wire(self.context.room.take_unannounced());
        if self.context.here != leader && !arrived.is_empty() {
            self.send(self.neighbour_of(leader), Frame::Arrived(Arrived { requests: arrived }))?;
        }
        self.flush()
    }

    /// Waits for the other follower's digests of a batch, which may have come before the plan.
    pub(crate) fn receive_digests(
        &mut self,
        fellow: Neighbour,
        batch: u64,
    ) -> Result<ComponentDigests, Failure> {
        match self.early.take() {
            Some(digests) if digests.batch == batch => Ok(digests),
            Some(_) => Err(Failure::fault("the other follower takes part in another batch".to_owned())),
            None => self.receive(fellow, Step::Digests, |frame| match frame {
                Frame::ComponentDigests(digests) if digests.batch == batch => Some(digests),
                _ => None,
            }),
        }
    }

    /// Waits for the frame of a neighbour that a step needs.
    pub(crate) fn receive<T>(
        &mut self,
        from: Neighbour,
        step: Step,
        wanted: impl FnOnce(Frame) -> Option<T>,
    ) -> Result<T, Failure> {
        let patience = self.patience();
        let waiting = self.context.lane.control().wait(step, None, Some(self.server_at(from)));
        let frame = loop {
            let frame = self.lane.receive(from, patience).map_err(|error| self.fail(&error, step.due()))?;
            match frame.frame {
                // A follower that had not read the plan yet when it announced more.
                Some(Frame::Arrived(arrived)) => self.arrivals.note(from, &arrived),
                Some(Frame::Released(released)) => release_kept(self.context, &released),
                Some(Frame::Incomplete(incomplete)) => drop_incomplete(self.context, &incomplete),
                Some(Frame::ModelWaiting(waiting)) => note_waiting(self.context, &waiting),
                Some(Frame::Barrier(barrier)) if step != Step::Barrier => {
                    self.underway.note_barrier(from, barrier)?;
                }
                Some(Frame::Heartbeat(_)) => {}
                _ => break frame,
            }
        };
        self.steps.note_wait(waiting.end());
        let peer = self.lane.index_of(from);
        match frame.frame {
            Some(Frame::Abort(abort)) => Err(given_up(peer, &abort)),
            Some(frame) => wanted(frame).ok_or_else(|| {
                Failure::fault(format!("server {peer} sent another frame than that to {}", step.due()))
            }),
            None => Err(Failure::fault(format!("server {peer} sent an unknown frame"))),
        }
    }
}

impl Link<'_> {
    /// Waits until a neighbour has charged for a batch.
    pub(crate) fn receive_barrier(&mut self, from: Neighbour) -> Result<Barrier, Failure> {
        self.receive(from, Step::Barrier, |frame| match frame {
            Frame::Barrier(barrier) => Some(barrier),
            _ => None,
        })
    }

    /// What runs a computation on this lane.
    pub(crate) fn computation(&mut self) -> Computation<'_> {
        let patience = self.patience();
        let progress = self.context.lane.control();
        Computation { lane: self.lane, steps: &mut self.steps, progress, patience }
    }

    /// Why a computation ended, better known: a server that gives a batch up says on this lane why, just before
    /// it drops the lane that computes. Notes it for the clients of the batch.
    pub(crate) fn explain(&mut self, failure: Failure) -> Failure {
        let until = Instant::now() + EXPLANATION;
        let told = loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lane.next_event(pending::<()>(), left) {
                Ok(LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::Abort(abort)) })) => {
                    break given_up(self.lane.index_of(from), &abort);
                }
                // The batch is lost, and with it all else that could come now.
                Ok(LaneEvent::Frame(..)) => {}
                Ok(_) => break failure,
                Err(error) => break self.fail(&error, "take part in a batch"),
            }
        };
        self.context.lane.note_error(told.reason.clone());
        told
    }
}

/// A server has given a batch up.
pub(crate) fn given_up(peer: u8, abort: &Abort) -> Failure {
    Failure::fault(format!("server {peer} gave up the batch: {}", abort.reason))
}

/// On server 0: a version waits on another server for its self-test.
pub(crate) fn note_waiting(context: &Context, waiting: &ModelWaiting) {
    if let Some(key) = TestKey::from_wire(waiting) {
        context.self_tests.note(key);
    }
}

/// On a follower: the leader has given these requests up.
pub(crate) fn drop_incomplete(context: &Context, incomplete: &Incomplete) {
    let waiting = named(&incomplete.requests).filter_map(|key| context.room.take(&key));
    waiting.for_each(|waiting| {
        waiting.finish(Err(RpcError::PeerUnavailable {
            peer: "another server".to_owned(),
            step: "not every server has received its part of the request; send all three at once".to_owned(),
        }));
    });
}

/// Another server has released its part of these results, so all three hold them committed: this
/// server releases its part to the clients that wait for it.
pub(crate) fn release_kept(context: &Context, released: &Released) {
    for waiting in context.room.note_released(named(&released.requests)) {
        let outcome = replay(context, &waiting);
        waiting.finish(outcome);
    }
    context.room.forget_released(Duration::from_millis(context.limits.request_timeout_ms));
}
