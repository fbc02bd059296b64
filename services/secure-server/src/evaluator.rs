//! The thread that runs batches: it keeps the lane to the two other servers up and takes one batch
//! after the other, as leader on server 0 and as follower on the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use concilium_mpc::{Neighbour, PartyIndex};
use concilium_privacy::RequestKey;
use concilium_rpc::lane::{Lane, LaneError, LaneEvent};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{Arrived, ComponentDigests, Incomplete, LaneFrame, Released};

use tokio::sync::oneshot;

use crate::arrivals::{Arrivals, named, to_wire};
use crate::batch::replay;
use crate::context::Context;
use crate::{follower, leader};

/// How long one attempt to reach the other servers lasts.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// How often an idle lane looks whether the server is to stop.
const TICK: Duration = Duration::from_millis(200);

/// Why a batch, and with it the present links, were given up.
#[derive(Debug)]
pub(crate) struct Failure {
    reason: String,
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
    context: &'a Context,
    /// The last session of this connection; keys are new with each connection.
    session: u64,
    /// Digests of a batch whose plan has not arrived here yet: the other follower got it sooner.
    early: Option<ComponentDigests>,
    /// On server 0: the requests that the other servers have.
    pub(crate) arrivals: Arrivals,
}

impl Link<'_> {
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

    pub(crate) fn fail(&self, error: &LaneError, step: &str) -> Failure {
        let reason = format!("{error} (this server waited for it to {step})");
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
        self.lane.flush(patience).map_err(|error| self.fail(&error, "take a message"))
    }

    /// Tells the others what they have not been told.
    fn tell(&mut self) -> Result<(), Failure> {
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
            None => self.receive(fellow, "send its component digests", |frame| match frame {
                Frame::ComponentDigests(digests) if digests.batch == batch => Some(digests),
                _ => None,
            }),
        }
    }

    /// Waits for one particular frame of a neighbour.
    pub(crate) fn receive<T>(
        &mut self,
        from: Neighbour,
        step: &str,
        wanted: impl FnOnce(Frame) -> Option<T>,
    ) -> Result<T, Failure> {
        let patience = self.patience();
        let frame = loop {
            let frame = self.lane.receive(from, patience).map_err(|error| self.fail(&error, step))?;
            match frame.frame {
                // A follower that had not read the plan yet when it announced more.
                Some(Frame::Arrived(arrived)) => self.arrivals.note(from, &arrived),
                Some(Frame::Released(released)) => release_kept(self.context, &released),
                Some(Frame::Incomplete(incomplete)) => drop_incomplete(self.context, &incomplete),
                _ => break frame,
            }
        };
        let peer = self.lane.index_of(from);
        match frame.frame {
            Some(Frame::Abort(abort)) => {
                Err(Failure::fault(format!("server {peer} gave up the batch: {}", abort.reason)))
            }
            Some(frame) => wanted(frame).ok_or_else(|| {
                Failure::fault(format!("server {peer} sent another frame than that to {step}"))
            }),
            None => Err(Failure::fault(format!("server {peer} sent an unknown frame"))),
        }
    }
}

/// Runs batches until `stop` is set.
pub fn run(mut lane: Lane, context: &Context, stop: &AtomicBool) {
    let mut reported = String::new();
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = lane.connect(CONNECT_PATIENCE) {
            let reason = error.to_string();
            // The same failure is repeated until the peer is there: say it once.
            if reason != reported {
                tracing::warn!(server = %context.here, error = %reason, "not connected to both other servers");
                reported = reason;
            }
            connection_lost(&lane, context, &error);
            // Timers can only be made inside the runtime.
            lane.block_on(async { tokio::time::sleep(TICK).await });
            continue;
        }
        reported.clear();
        for neighbour in [Neighbour::Next, Neighbour::Previous] {
            let peer = PartyIndex::in_turn(usize::from(lane.index_of(neighbour)));
            context.tasks.note_peer(peer, lane.peer_tasks(neighbour));
        }
        context.lane.set_connected(true, true);
        tracing::info!(server = %context.here, "connected to both other servers");
        report_disagreements(context);
        let failure = serve(&mut lane, context, stop);
        context.lane.set_connected(false, false);
        if let Err(failure) = failure {
            context.lane.note_error(failure.reason.clone());
            context.lane.count_failure();
            tracing::warn!(server = %context.here, reason = %failure.reason, "gave up the links to the other servers");
            // What waits here may be unknown to the others by now: the clients ask again.
            context.room.fail_all(&context.lane.failure());
        }
        lane.disconnect();
    }
    context.room.fail_all(&context.lane.failure());
}

/// Tells the operator at once, instead of at the first request.
fn report_disagreements(context: &Context) {
    for task in context.tasks.all() {
        if let Err(error) = context.tasks.check_agreement(task) {
            tracing::error!(server = %context.here, task = task.name(), %error, "the servers disagree on a task");
        }
    }
}

/// Requests can't be answered while a server is missing; their clients may ask again.
fn connection_lost(lane: &Lane, context: &Context, error: &LaneError) {
    let connected = |neighbour| lane.is_connected(neighbour);
    context.lane.set_connected(connected(Neighbour::Next), connected(Neighbour::Previous));
    context.lane.note_error(error.to_string());
    context.room.fail_all(&context.lane.failure());
}

/// Serves one connection until it breaks or the server stops.
fn serve(lane: &mut Lane, context: &Context, stop: &AtomicBool) -> Result<(), Failure> {
    let mut link = Link { lane, context, session: 0, early: None, arrivals: Arrivals::default() };
    if context.here == PartyIndex::ALL[0] {
        serve_as_leader(&mut link, context, stop)
    } else {
        context.room.announce_again();
        serve_as_follower(&mut link, context, stop)
    }
}

fn serve_as_leader(link: &mut Link<'_>, context: &Context, stop: &AtomicBool) -> Result<(), Failure> {
    let limits = &context.limits;
    let batch_wait = Duration::from_millis(limits.batch_wait_ms);
    // When the oldest request that is ready was first seen to be so.
    let mut ready_since: Option<Instant> = None;
    let mut tidied = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if tidied.elapsed() > TICK {
            tidied = Instant::now();
            give_up_incomplete(link, context)?;
        }
        // Read before looking, so that an arrival in between ends the wait below.
        let seen = context.room.arrivals();
        let rows = context.room.rows(|key| link.arrivals.everywhere(key));
        if rows > 0 {
            let waited = ready_since.get_or_insert_with(Instant::now).elapsed();
            if rows >= limits.batch_rows || waited >= batch_wait {
                ready_since = None;
                leader::lead(link, context)?;
                continue;
            }
        }
        let patience = ready_since.map_or(TICK, |since| batch_wait.saturating_sub(since.elapsed()));
        let event = link.lane.next_event(context.room.wait_for_arrival(seen), patience);
        match event.map_err(|error| link.fail(&error, "stay connected"))? {
            LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::Arrived(arrived)) }) => {
                link.arrivals.note(from, &arrived);
            }
            LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::Released(released)) }) => {
                release_kept(context, &released);
            }
            LaneEvent::Other(()) => link.tell()?,
            LaneEvent::TimedOut => {}
            event => return Err(unexpected(link, event)),
        }
    }
    Ok(())
}

/// Tells clients that have left a server out, here and on the servers that they have not left out.
fn give_up_incomplete(link: &mut Link<'_>, context: &Context) -> Result<(), Failure> {
    let patience = Duration::from_millis(context.limits.arrival_timeout_ms);
    let not_here = |key: &RequestKey| !context.room.contains(key);
    let mut incomplete = link.arrivals.take_older(patience, not_here);
    let not_everywhere = |key: &RequestKey| !link.arrivals.everywhere(key);
    for waiting in context.room.take_older(patience, not_everywhere) {
        let missing = link.lane.index_of(link.arrivals.missing_on(&waiting.key));
        link.arrivals.forget(&waiting.key);
        incomplete.push(waiting.key.clone());
        waiting.finish(Err(left_out(missing)));
    }
    if incomplete.is_empty() {
        return Ok(());
    }
    link.send_both(Frame::Incomplete(Incomplete { requests: to_wire(incomplete) }))?;
    link.flush()
}

/// What a client is told of whose request not every server has its part.
fn left_out(server: u8) -> RpcError {
    RpcError::PeerUnavailable {
        peer: format!("server {server}"),
        step: "it has not received its part of the request; send all three parts at once".to_owned(),
    }
}

/// On a follower: the leader has given these requests up.
fn drop_incomplete(context: &Context, incomplete: &Incomplete) {
    let waiting = named(&incomplete.requests).filter_map(|key| context.room.take(&key));
    waiting.for_each(|waiting| {
        waiting.finish(Err(RpcError::PeerUnavailable {
            peer: "another server".to_owned(),
            step: "not every server has received its part of the request; send all three at once".to_owned(),
        }));
    });
}

fn serve_as_follower(link: &mut Link<'_>, context: &Context, stop: &AtomicBool) -> Result<(), Failure> {
    let leader = link.neighbour_of(PartyIndex::ALL[0]);
    while !stop.load(Ordering::Relaxed) {
        let event = link.lane.next_event(context.room.wait_for_news(), TICK);
        match event.map_err(|error| link.fail(&error, "stay connected"))? {
            LaneEvent::Other(()) => link.tell()?,
            LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::Released(released)) }) => {
                release_kept(context, &released);
            }
            LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::Incomplete(incomplete)) }) => {
                drop_incomplete(context, &incomplete);
            }
            LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::Plan(plan)) }) if from == leader => {
                follower::follow(link, context, plan)?;
            }
            LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::ComponentDigests(digests)) })
                if link.early.is_none() && from != leader =>
            {
                link.early = Some(digests);
            }
            LaneEvent::TimedOut => {}
            event => return Err(unexpected(link, event)),
        }
    }
    Ok(())
}

/// Another server has released its part of these results, so all three hold them committed: this
/// server releases its part to the clients that wait for it.
fn release_kept(context: &Context, released: &Released) {
    for waiting in context.room.note_released(named(&released.requests)) {
        let outcome = replay(context, &waiting);
        waiting.finish(outcome);
    }
    context.room.forget_released(Duration::from_millis(context.limits.request_timeout_ms));
}

fn unexpected(link: &Link<'_>, event: LaneEvent<()>) -> Failure {
    Failure::fault(match event {
        LaneEvent::Frame(from, _) => {
            format!("server {} sent a frame that is not due between batches", link.lane.index_of(from))
        }
        _ => "the previous server dialled again".to_owned(),
    })
}

/// Starts the thread. The receiver fails when the thread has ended, for whatever reason.
///
/// # Errors
/// What the system says when there is no thread left.
pub fn spawn(
    lane: Lane,
    context: Arc<Context>,
    stop: Arc<AtomicBool>,
) -> std::io::Result<(std::thread::JoinHandle<()>, oneshot::Receiver<()>)> {
    let (alive, ended) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("lane-0".to_owned()).spawn(move || {
        // Dropped when the thread ends, also by a panic.
        let _alive = alive;
        run(lane, &context, &stop);
    })?;
    Ok((thread, ended))
}
