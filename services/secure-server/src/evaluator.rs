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
use concilium_rpc::v1::{Incomplete, LaneFrame};
use tokio::sync::oneshot;

use crate::arrivals::to_wire;
use crate::context::Context;
use crate::link::{Failure, Link, drop_incomplete, note_waiting, release_kept};
use crate::{follower, leader, ledger_watch, metrics, self_test};

/// How long one attempt to reach the other servers lasts.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// How often an idle lane looks whether the server is to stop.
const TICK: Duration = Duration::from_millis(200);

/// Pause before links that were lost are made anew, at first and at most.
const REJOIN_PAUSE: Duration = Duration::from_millis(50);
const MAXIMUM_REJOIN_PAUSE: Duration = Duration::from_millis(1600);
/// Links that held this long were no failed attempt to join.
const SETTLED: Duration = Duration::from_secs(2);

/// How long a server stays away after it has lost its links.
///
/// Whoever loses one link gives up both, so a loss goes round all three servers. One that came back at
/// once would connect to a server that has yet to notice, lose that link, and send the loss round again,
/// without end when the three are out of step. The pause lets all of them notice; its random part and
/// its growth bring them back in step.
struct Rejoin {
    pause: Duration,
}

impl Rejoin {
    /// The pause after links that held for `held`.
    fn next_pause(&mut self, held: Duration) -> Duration {
        let doubled = (2 * self.pause).min(MAXIMUM_REJOIN_PAUSE);
        self.pause = if held >= SETTLED { REJOIN_PAUSE } else { doubled };
        self.pause.mul_f64(rand::random_range(0.5..1.5))
    }
}

/// Runs batches until `stop` is set.
pub fn run(mut lane: Lane, context: &Context, stop: &AtomicBool) {
    let mut reported = String::new();
    let mut rejoin = Rejoin { pause: REJOIN_PAUSE };
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
        let versions = [Neighbour::Next, Neighbour::Previous].map(|neighbour| lane.peer_version(neighbour));
        context.lane.note_versions(versions);
        context.lane.set_connected(true, true, context.clock.now_ms());
        metrics::count_connection();
        tracing::info!(server = %context.here, "connected to both other servers");
        report_disagreements(context);
        let connected = Instant::now();
        let failure = serve(&mut lane, context, stop);
        context.lane.set_connected(false, false, context.clock.now_ms());
        if let Err(failure) = failure {
            context.lane.note_error(failure.reason.clone());
            context.lane.count_failure(context.clock.now_ms());
            metrics::count_connection_failure();
            tracing::warn!(server = %context.here, reason = %failure.reason, "gave up the links to the other servers");
            // What waits here may be unknown to the others by now: the clients ask again.
            give_up_waiting(context);
        }
        lane.disconnect();
        if !stop.load(Ordering::Relaxed) {
            let pause = rejoin.next_pause(connected.elapsed());
            lane.block_on(async { tokio::time::sleep(pause).await });
        }
    }
    give_up_waiting(context);
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
    let (next, previous) = (connected(Neighbour::Next), connected(Neighbour::Previous));
    context.lane.set_connected(next, previous, context.clock.now_ms());
    if let Some(peer) = error.peer() {
        context.lane.note_peer_error(context.here, peer, &error.to_string());
    }
    context.lane.note_error(error.to_string());
    give_up_waiting(context);
}

/// Tells all who wait for the lane why there is nothing to wait for.
fn give_up_waiting(context: &Context) {
    let failure = context.lane.failure();
    context.room.fail_all(&failure);
    context.self_tests.fail_all(&failure);
}

/// Serves one connection until it breaks or the server stops.
fn serve(lane: &mut Lane, context: &Context, stop: &AtomicBool) -> Result<(), Failure> {
    let mut link = Link::new(lane, context);
    ledger_watch::compare(&mut link, context)?;
    context.self_tests.begin_again();
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
    // Whether requests come together, so that a wait brings further ones. One that comes alone starts at once.
    let mut crowded = false;
    let mut tidied = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        link.beat()?;
        if tidied.elapsed() > TICK {
            tidied = Instant::now();
            give_up_incomplete(link, context)?;
        }
        if let Some(test) = context.self_tests.take_due() {
            self_test::lead(link, context, &test)?;
        }
        // Read before looking, so that an arrival in between ends the wait below.
        let seen = context.room.arrivals();
        let rows = context.room.rows(|key| link.arrivals.everywhere(key));
        if rows > 0 {
            let waited = ready_since.get_or_insert_with(Instant::now).elapsed();
            if !crowded || rows >= limits.batch_rows || waited >= batch_wait {
                ready_since = None;
                crowded = leader::lead(link, context)? > 1;
                continue;
            }
        }
        let patience = ready_since.map_or(TICK, |since| batch_wait.saturating_sub(since.elapsed()));
        let news = either(context.room.wait_for_arrival(seen), context.self_tests.wait_until_due());
        let event = link.lane.next_event(news, patience);
        match heard(link, event)? {
            LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::Arrived(arrived)) }) => {
                link.arrivals.note(from, &arrived);
            }
            LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::Released(released)) }) => {
                release_kept(context, &released);
            }
            LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::ModelWaiting(waiting)) }) => {
                note_waiting(context, &waiting);
            }
            LaneEvent::Other(()) => link.tell()?,
            LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::Heartbeat(_)) }) | LaneEvent::TimedOut => {}
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

fn serve_as_follower(link: &mut Link<'_>, context: &Context, stop: &AtomicBool) -> Result<(), Failure> {
    let leader = link.neighbour_of(PartyIndex::ALL[0]);
    while !stop.load(Ordering::Relaxed) {
        link.beat()?;
        self_test::announce(link, context)?;
        let news = either(context.room.wait_for_news(), context.self_tests.wait_until_due());
        let event = link.lane.next_event(news, TICK);
        match heard(link, event)? {
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
            LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::SelfTest(test)) }) if from == leader => {
                self_test::follow(link, context, *test)?;
            }
            LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::ComponentDigests(digests)) })
                if link.early.is_none() && from != leader =>
            {
                link.early = Some(digests);
            }
            LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::Heartbeat(_)) }) | LaneEvent::TimedOut => {}
            event => return Err(unexpected(link, event)),
        }
    }
    Ok(())
}

/// Waits for one of two things.
async fn either(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    tokio::select! {
        () = first => {}
        () = second => {}
    }
}

/// What came between batches, with whom it came from noted.
fn heard(link: &mut Link<'_>, event: Result<LaneEvent<()>, LaneError>) -> Result<LaneEvent<()>, Failure> {
    let event = event.map_err(|error| link.fail(&error, "stay connected"))?;
    if let LaneEvent::Frame(from, _) = &event {
        link.note_heard(*from);
    }
    Ok(event)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_links_do_not_hold_and_differ_between_servers() {
        let mut rejoin = Rejoin { pause: REJOIN_PAUSE };
        let mut least = REJOIN_PAUSE;
        for _ in 0..20 {
            least = (2 * least).min(MAXIMUM_REJOIN_PAUSE);
            let pause = rejoin.next_pause(Duration::ZERO);
            assert!((least / 2..least * 3 / 2).contains(&pause), "{pause:?} around {least:?}");
        }
        let pauses: std::collections::BTreeSet<_> =
            (0..20).map(|_| rejoin.next_pause(Duration::ZERO)).collect();
        assert!(pauses.len() > 1, "servers that pause alike stay out of step");
        assert!(rejoin.next_pause(SETTLED) < 2 * REJOIN_PAUSE);
    }
}
