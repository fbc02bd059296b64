//! The thread on which the servers agree: it keeps the lanes to the two other servers up, and agrees on batches,
//! charges for them and releases them, as leader on server 0 and as follower on the others. The batches are
//! computed on lanes and threads of their own.

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
use crate::computing::{Computed, Computing};
use crate::context::Context;
use crate::link::{Failure, Link, drop_incomplete, given_up, note_waiting, release_kept};
use crate::underway::{self, Underway};
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

/// Runs batches until `stop` is set. On the first of `lanes` the servers agree, on the others they compute.
pub fn run(mut lanes: Vec<Lane>, context: &Context, stop: &AtomicBool) {
    let mut lane = lanes.remove(0);
    std::thread::scope(|scope| match Computing::start(scope, context, lanes) {
        Ok(mut computing) => run_on(&mut lane, &mut computing, context, stop),
        Err(error) => tracing::error!(server = %context.here, %error, "no threads for the lanes"),
    });
    give_up_waiting(context);
}

fn run_on(lane: &mut Lane, computing: &mut Computing, context: &Context, stop: &AtomicBool) {
    let mut reported = String::new();
    let mut rejoin = Rejoin { pause: REJOIN_PAUSE };
    while !stop.load(Ordering::Relaxed) {
        let lanes = match connect(lane, computing) {
            Ok(lanes) => lanes,
            Err(error) => {
                let reason = error.to_string();
                // The same failure is repeated until the peer is there: say it once.
                if reason != reported {
                    tracing::warn!(server = %context.here, error = %reason, "not connected to both other servers");
                    reported = reason;
                }
                connection_lost(lane, context, &error);
                // Timers can only be made inside the runtime.
                lane.block_on(async { tokio::time::sleep(TICK).await });
                continue;
            }
        };
        reported.clear();
        for neighbour in [Neighbour::Next, Neighbour::Previous] {
            let peer = PartyIndex::in_turn(usize::from(lane.index_of(neighbour)));
            context.tasks.note_peer(peer, lane.peer_tasks(neighbour));
        }
        let versions = [Neighbour::Next, Neighbour::Previous].map(|neighbour| lane.peer_version(neighbour));
        context.lane.note_versions(versions);
        context.lane.set_connected(true, true, context.clock.now_ms());
        metrics::count_connection();
        tracing::info!(server = %context.here, lanes, "connected to both other servers");
        report_disagreements(context);
        let connected = Instant::now();
        let failure = serve(lane, Underway::new(computing, lanes), context, stop);
        context.lane.set_connected(false, false, context.clock.now_ms());
        if let Err(failure) = failure {
            context.lane.note_error(failure.reason.clone());
            context.lane.count_failure(context.clock.now_ms());
            metrics::count_connection_failure();
            tracing::warn!(server = %context.here, reason = %failure.reason, "gave up the links to the other servers");
            // What waits here may be unknown to the others by now: the clients ask again.
            give_up_waiting(context);
        }
        computing.disconnect(lane);
        lane.disconnect();
        if !stop.load(Ordering::Relaxed) {
            let pause = rejoin.next_pause(connected.elapsed());
            lane.block_on(async { tokio::time::sleep(pause).await });
        }
    }
}

/// Establishes the links that are missing. Returns on how many lanes the three servers can compute.
fn connect(lane: &mut Lane, computing: &mut Computing) -> Result<usize, Box<LaneError>> {
    lane.connect(CONNECT_PATIENCE)?;
    let theirs = [Neighbour::Next, Neighbour::Previous].map(|peer| lane.peer_lanes(peer).saturating_sub(1));
    let lanes = computing.lanes().min(theirs[0]).min(theirs[1]);
    computing.connect(lane, lanes, CONNECT_PATIENCE)?;
    Ok(lanes)
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
fn serve<'a>(
    lane: &'a mut Lane,
    underway: Underway<'a>,
    context: &'a Context,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let mut link = Link::new(lane, underway, context);
    let served = serve_link(&mut link, stop);
    if served.is_err() {
        link.underway.count_failed();
    }
    served
}

fn serve_link(link: &mut Link<'_>, stop: &AtomicBool) -> Result<(), Failure> {
    ledger_watch::compare(link, link.context)?;
    link.context.self_tests.begin_again();
    if link.context.here == PartyIndex::ALL[0] {
        serve_as_leader(link, stop)
    } else {
        link.context.room.announce_again();
        serve_as_follower(link, stop)
    }
}

/// What a server learns on its own between two frames.
enum News {
    /// Something has changed among the requests or the models that wait.
    Waiting,
    /// A lane has computed a batch.
    Computed(usize, Computed),
}

/// Whether the server goes on over this connection. If it is to stop, or a certificate has ended, it takes no
/// further batch, and ends when those under way have ended.
///
/// # Errors
/// That a certificate has ended.
fn goes_on(link: &mut Link<'_>, stop: &AtomicBool) -> Result<bool, Failure> {
    let certificates = link.lane.check_certificates();
    link.closing = if stop.load(Ordering::Relaxed) {
        Some("it is stopping")
    } else if certificates.is_err() {
        Some("it makes its links anew with renewed certificates")
    } else {
        None
    };
    if link.closing.is_none() || !link.underway.is_empty() {
        return Ok(true);
    }
    certificates.map(|()| false).map_err(|error| link.fail(&error, "stay connected"))
}

fn serve_as_leader(link: &mut Link<'_>, stop: &AtomicBool) -> Result<(), Failure> {
    let (context, limits) = (link.context, &link.context.limits);
    let batch_wait = Duration::from_millis(limits.batch_wait_ms);
    // When the oldest request that is ready was first seen to be so.
    let mut ready_since: Option<Instant> = None;
    // Whether requests come together, so that a wait brings further ones. One that comes alone starts at once.
    let mut crowded = false;
    let mut tidied = Instant::now();
    while goes_on(link, stop)? {
        link.beat()?;
        underway::advance(link)?;
        if tidied.elapsed() > TICK {
            tidied = Instant::now();
            give_up_incomplete(link, context)?;
        }
        // Read before looking, so that an arrival in between ends the wait below.
        let seen = context.room.arrivals();
        let mut patience = TICK;
        let alone = link.underway.is_empty();
        let mut tested = false;
        if alone
            && link.closing.is_none()
            && let Some(test) = context.self_tests.take_due()
        {
            self_test::lead(link, context, &test)?;
            tested = true;
        }
        // No batch begins while a test waits for a time without one; between two tests there is one.
        let may_begin = link.closing.is_none() && (tested || !context.self_tests.is_due());
        if may_begin && link.underway.free_lane().is_some() {
            let rows = context.room.rows(|key| link.arrivals.everywhere(key));
            if rows > 0 {
                let waited = ready_since.get_or_insert_with(Instant::now).elapsed();
                if !crowded || rows >= limits.batch_rows || waited >= batch_wait {
                    ready_since = None;
                    crowded = leader::lead(link, context)? > 1;
                    continue;
                }
                patience = batch_wait.saturating_sub(waited);
            }
        }
        let (alone, until_news) = (link.underway.is_empty(), link.until_news());
        if !until_news.is_zero() {
            patience = patience.min(until_news);
        }
        let news = async {
            tokio::select! {
                (lane, computed) = link.underway.next_computed() => News::Computed(lane, computed),
                () = context.room.wait_for_arrival(seen), if until_news.is_zero() => News::Waiting,
                () = context.self_tests.wait_until_due(), if alone => News::Waiting,
            }
        };
        let event = link.lane.next_event(news, patience);
        hear_as_leader(link, event)?;
    }
    Ok(())
}

/// Server 0: waits until another batch can begin.
pub(crate) fn wait_for_lane(link: &mut Link<'_>) -> Result<(), Failure> {
    loop {
        underway::advance(link)?;
        if link.underway.free_lane().is_some() {
            return Ok(());
        }
        let news = async {
            let (lane, computed) = link.underway.next_computed().await;
            News::Computed(lane, computed)
        };
        let event = link.lane.next_event(news, TICK);
        hear_as_leader(link, event)?;
    }
}

fn hear_as_leader(link: &mut Link<'_>, event: Result<LaneEvent<News>, LaneError>) -> Result<(), Failure> {
    match heard(link, event)? {
        LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::Arrived(arrived)) }) => {
            link.arrivals.note(from, &arrived);
            Ok(())
        }
        LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::ModelWaiting(waiting)) }) => {
            note_waiting(link.context, &waiting);
            Ok(())
        }
        event => hear(link, event),
    }
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

fn serve_as_follower(link: &mut Link<'_>, stop: &AtomicBool) -> Result<(), Failure> {
    let context = link.context;
    let leader = link.neighbour_of(PartyIndex::ALL[0]);
    while goes_on(link, stop)? {
        link.beat()?;
        underway::advance(link)?;
        self_test::announce(link, context)?;
        let until_news = link.until_news();
        let patience = if until_news.is_zero() { TICK } else { until_news };
        let news = async {
            tokio::select! {
                (lane, computed) = link.underway.next_computed() => News::Computed(lane, computed),
                () = context.room.wait_for_news(), if until_news.is_zero() => News::Waiting,
                () = context.self_tests.wait_until_due() => News::Waiting,
            }
        };
        let event = link.lane.next_event(news, patience);
        match heard(link, event)? {
            LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::Incomplete(incomplete)) }) => {
                drop_incomplete(context, &incomplete);
            }
            LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::Plan(plan)) }) if from == leader => {
                follower::follow(link, context, plan)?;
            }
            LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::SelfTest(test)) }) if from == leader => {
                underway::finish(link)?;
                self_test::follow(link, context, *test)?;
            }
            LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::ComponentDigests(digests)) })
                if link.early.is_none() && from != leader =>
            {
                link.early = Some(digests);
            }
            event => hear(link, event)?,
        }
    }
    Ok(())
}

/// What leader and followers hear alike between two batches.
fn hear(link: &mut Link<'_>, event: LaneEvent<News>) -> Result<(), Failure> {
    match event {
        LaneEvent::Other(News::Waiting) => link.tell(),
        LaneEvent::Other(News::Computed(lane, computed)) => {
            link.underway.note_computed(lane, computed);
            Ok(())
        }
        LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::Released(released)) }) => {
            release_kept(link.context, &released);
            Ok(())
        }
        LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::Barrier(barrier)) }) => {
            link.underway.note_barrier(from, barrier)
        }
        LaneEvent::Frame(from, LaneFrame { frame: Some(Frame::Abort(abort)) }) => {
            Err(given_up(link.lane.index_of(from), &abort))
        }
        LaneEvent::Frame(_, LaneFrame { frame: Some(Frame::Heartbeat(_)) }) | LaneEvent::TimedOut => Ok(()),
        event => Err(unexpected(link, event)),
    }
}

/// What came between batches, with whom it came from noted.
fn heard<T>(link: &mut Link<'_>, event: Result<LaneEvent<T>, LaneError>) -> Result<LaneEvent<T>, Failure> {
    let event = event.map_err(|error| link.fail(&error, "stay connected"))?;
    if let LaneEvent::Frame(from, _) = &event {
        link.note_heard(*from);
    }
    Ok(event)
}

fn unexpected<T>(link: &Link<'_>, event: LaneEvent<T>) -> Failure {
    Failure::fault(match event {
        LaneEvent::Frame(from, _) => {
            format!("server {} sent a frame that is not due between batches", link.lane.index_of(from))
        }
        _ => "the previous server dialled again".to_owned(),
    })
}

/// Starts the thread, which is also the first lane's. The receiver fails when the thread has ended, for whatever reason.
///
/// # Errors
/// What the system says when there is no thread left.
pub fn spawn(
    lanes: Vec<Lane>,
    context: Arc<Context>,
    stop: Arc<AtomicBool>,
) -> std::io::Result<(std::thread::JoinHandle<()>, oneshot::Receiver<()>)> {
    let (alive, ended) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("lane-0".to_owned()).spawn(move || {
        // Dropped when the thread ends, also by a panic.
        let _alive = alive;
        run(lanes, &context, &stop);
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
