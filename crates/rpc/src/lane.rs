//! The link of one server to the two others.
//!
//! A [`Lane`] belongs to one thread at a time, which runs on it what it has to do as plain synchronous
//! code. It owns a current-thread tokio runtime: the sockets make progress exactly while the thread waits
//! in a call of the lane, without any hand-over between threads. On a loopback link that is several times
//! faster per round than a multi-thread runtime. A server has several lanes ([`Lane::open`]), each with
//! connections of its own over the same port: on the first the servers agree, on each of the others one
//! batch computes.
//!
//! Server i dials server i + 1 mod 3 and accepts the stream of server i - 1 mod 3. A send only queues
//! the frame and never waits, so no two servers can wait for each other to read; what is queued leaves
//! during the next wait, or at [`Lane::carry`] and [`Lane::flush`].
//!
//! When a link breaks, the batch under way fails with a [`LaneError`]. The caller then drops what is
//! left of it by [`Lane::disconnect`], which also ends the batch on the peers, and joins again with
//! [`Lane::connect`]. A link also breaks between two batches when a certificate that it was opened with
//! ends: the next connection takes the certificate that is in use by then. Keys and frames of the old
//! links never mix with the new ones.

use std::{
    future::{Future, pending},
    io,
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use concilium_mpc::{Neighbour, PairwiseKeys};
use tokio::{runtime::Runtime, sync::mpsc, time};

use crate::{
    accept::{GRPC_PROTOCOLS, TlsIncoming},
    connect::quiet_server_builder,
    identity::SERVERS,
    inspection::utc,
    lane::{
        link::{Dialler, Introduction, Link},
        port::Source,
        service::PeerService,
    },
    reload::ReloadableTls,
    v1::{LaneFrame, TaskPolicy, lane_frame, peer_server::PeerServer},
};

mod channel;
mod error;
mod interrupt;
mod link;
pub(crate) mod port;
mod service;

pub use channel::LaneChannel;
pub use error::LaneError;
pub use service::CompareModels;

pub use interrupt::Interrupt;
pub use port::MAXIMUM_LANES;

/// Version of what the servers say to each other; all three must speak the same.
pub const PROTOCOL_VERSION: u32 = 5;

/// Longest pause between two attempts to dial.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Everything that the lanes of a server need.
pub struct LaneConfig {
    /// How many lanes there are to be, 1 to [`MAXIMUM_LANES`]; other numbers are taken for the nearest.
    pub lanes: usize,
    /// Socket of the peer port.
    pub listener: TcpListener,
    /// `host:port` of the peer port of server i + 1 mod 3.
    pub next_address: String,
    /// This server's certificate; it says which server this is.
    pub tls: ReloadableTls,
    /// The shared policies of the tasks that this server serves, told to the peers in `Hello`.
    pub tasks: Vec<TaskPolicy>,
    /// Answers the peers' `CompareModel` calls.
    pub models: Arc<dyn CompareModels>,
    /// Where this server's contributions to the keys of its links come from: [`system_randomness`].
    pub randomness: FillRandom,
}

/// Fills bytes at random, or says why that failed.
pub type FillRandom = Arc<dyn Fn(&mut [u8]) -> Result<(), String> + Send + Sync>;

/// The operating system's randomness.
pub fn system_randomness() -> FillRandom {
    Arc::new(|bytes| getrandom::fill(bytes).map_err(|error| error.to_string()))
}

/// What ended a wait of [`Lane::next_event`].
#[derive(Debug)]
pub enum LaneEvent<T> {
    /// A frame arrived.
    Frame(Neighbour, LaneFrame),
    /// The caller's own future finished.
    Other(T),
    /// The previous server has dialled and there is no link to it: [`Lane::connect`] takes the stream.
    PeerDialled,
    /// Nothing happened in time.
    TimedOut,
}

/// The link of one server to the two others. See the module's documentation.
pub struct Lane {
    runtime: Runtime,
    party: u8,
    interrupt: Interrupt,
    dialler: Dialler,
    next: Option<Link>,
    previous: Option<Link>,
    /// A stream that the previous server has dialled and that no batch has used yet.
    waiting: Option<Link>,
    accepted: mpsc::UnboundedReceiver<Link>,
}

impl Lane {
    /// The lanes of a server, in order. The first one owns the port and answers the peers' `CompareModel`
    /// calls. Nothing moves on a lane until a thread waits in a call of it, [`Lane::connect`] first of all;
    /// the others' connections come about while the first one is waited in, too.
    ///
    /// # Errors
    /// [`LaneError::NotAServer`], [`LaneError::Setup`] or [`LaneError::Connect`] for bad TLS files.
    pub fn open(config: LaneConfig) -> Result<Vec<Self>, LaneError> {
        let LaneConfig { lanes, listener, next_address, tls, tasks, models, randomness } = config;
        let lanes = lanes.clamp(1, MAXIMUM_LANES);
        let identity = tls.current().identity().clone();
        let party = identity.server_index().ok_or(LaneError::NotAServer { identity })?;
        let tasks: Arc<[TaskPolicy]> = tasks.into();
        let (further, passed) = port::further(lanes - 1);
        let first = || Source::port(listener, further);
        let introduce = |lane: usize| Introduction {
            party,
            lane: lane as u8,
            lanes: lanes as u8,
            tasks: Arc::clone(&tasks),
            randomness: Arc::clone(&randomness),
        };
        let mut opened = vec![Self::start(introduce(0), first, &next_address, &tls, &models)?];
        for (place, passed) in passed.into_iter().enumerate() {
            let source = || Ok(Source::Passed(passed));
            opened.push(Self::start(introduce(place + 1), source, &next_address, &tls, &models)?);
        }
        Ok(opened)
    }

    /// One lane, to which the connections of `source` come.
    fn start(
        introduction: Introduction,
        source: impl FnOnce() -> io::Result<Source>,
        next_address: &str,
        tls: &ReloadableTls,
        models: &Arc<dyn CompareModels>,
    ) -> Result<Self, LaneError> {
        let setup = |source| LaneError::Setup { source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(setup)?;
        let (accept, accepted) = mpsc::unbounded_channel();
        let party = introduction.party;
        let service = PeerService::new(introduction.clone(), Arc::clone(models), accept, tls.clone());
        let dialler = Dialler::new(introduction, next_address.to_owned(), tls.clone())?;
        let mut server = quiet_server_builder();
        let connections = {
            let _inside = runtime.enter();
            let source = source().map_err(setup)?;
            TlsIncoming::of(source, tls, GRPC_PROTOCOLS).map_err(setup)?
        };
        runtime.spawn(async move {
            let served = server.add_service(PeerServer::new(service)).serve_with_incoming(connections).await;
            if let Err(error) = served {
                tracing::error!(error = %crate::connect::describe(&error), "the peer port stopped");
            }
        });
        Ok(Self {
            runtime,
            party,
            interrupt: Interrupt::default(),
            dialler,
            next: None,
            previous: None,
            waiting: None,
            accepted,
        })
    }

    /// Index of this server, 0 to 2.
    pub fn party(&self) -> u8 {
        self.party
    }

    /// Index of a neighbour, 0 to 2.
    pub fn index_of(&self, neighbour: Neighbour) -> u8 {
        neighbour_index(self.party, neighbour)
    }

    /// Ends a wait for a message on this lane from another thread.
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// Whether a link to the neighbour is up, as far as is known.
    pub fn is_connected(&self, neighbour: Neighbour) -> bool {
        self.link(neighbour).is_some()
    }

    /// The policies that the neighbour serves, as it told when the link came up; empty without a link.
    pub fn peer_tasks(&self, neighbour: Neighbour) -> &[TaskPolicy] {
        self.link(neighbour).map_or(&[], |link| &link.tasks)
    }

    /// How many lanes the neighbour has, as it told when the link came up; 0 without a link.
    pub fn peer_lanes(&self, neighbour: Neighbour) -> usize {
        self.link(neighbour).map_or(0, |link| link.lanes)
    }

    /// The version of the neighbour's program, as it told when the link came up; empty without a link.
    pub fn peer_version(&self, neighbour: Neighbour) -> &str {
        self.link(neighbour).map_or("", |link| &link.version)
    }

    /// Keys of the randomness shared with each neighbour over the present links: each joins one fresh
    /// contribution of either side. They change with every connection, so numbers of sessions may
    /// begin anew with it. SECRET.
    ///
    /// # Errors
    /// [`LaneError::NotConnected`].
    pub fn pairwise_keys(&self) -> Result<PairwiseKeys, LaneError> {
        let key = |neighbour| match self.link(neighbour) {
            Some(link) => Ok(&link.pair_key),
            None => Err(LaneError::NotConnected { peer: self.index_of(neighbour) }),
        };
        Ok(PairwiseKeys::new(**key(Neighbour::Previous)?, **key(Neighbour::Next)?))
    }

    /// Establishes the links that are missing, within `patience`. An attempt that fails for a passing
    /// reason is repeated. What could be established stays, so the call may be repeated.
    ///
    /// # Errors
    /// [`LaneError::Connect`] and [`LaneError::Refused`] for what a repeat does not cure,
    /// [`LaneError::TimedOut`] or the last failure otherwise.
    pub fn connect(&mut self, patience: Duration) -> Result<(), LaneError> {
        let Self { runtime, party, dialler, next, previous, waiting, accepted, .. } = self;
        let previous_index = neighbour_index(*party, Neighbour::Previous);
        let begin = Instant::now();
        runtime.block_on(async {
            loop {
                link::let_tasks_run().await;
                // The newest stream is the one that the peer uses.
                while let Ok(link) = accepted.try_recv() {
                    *waiting = Some(link);
                    *previous = None;
                }
                next.take_if(|link| link.has_ended());
                previous.take_if(|link| link.has_ended());
                waiting.take_if(|link| link.has_ended());
                if previous.is_none() {
                    *previous = waiting.take();
                }
                // A link that came first may have ended while the other one was waited for. Taken for
                // good, it would break at once, and with it the other one: the three could go on so
                // for ever, each losing what its neighbour has just given up.
                if next.is_some() && previous.is_some() {
                    return Ok(());
                }
                let dial = async {
                    if next.is_none() {
                        *next = Some(dial_until(dialler, begin + patience, patience).await?);
                    }
                    Ok::<_, LaneError>(())
                };
                let accept = async {
                    if previous.is_none() {
                        let accepted = time::timeout_at((begin + patience).into(), accepted.recv()).await;
                        let late = |_| LaneError::timed_out(previous_index, "dial this server", patience);
                        // Without the peer port nobody can dial.
                        let stopped = || LaneError::NotConnected { peer: previous_index };
                        *previous = Some(accepted.map_err(late)?.ok_or_else(stopped)?);
                    }
                    Ok(())
                };
                tokio::try_join!(dial, accept)?;
            }
        })
    }

    /// Drops both links, so that the peers notice that the batch is over. A stream that the previous
    /// server has dialled since is kept for the next [`Lane::connect`].
    pub fn disconnect(&mut self) {
        self.interrupt.clear();
        self.next = None;
        self.previous = None;
        while let Ok(link) = self.accepted.try_recv() {
            self.waiting = Some(link);
        }
        self.runtime.block_on(link::let_tasks_run());
    }

    /// Queues a frame for a neighbour. It leaves during the next wait, at [`Lane::carry`] or at
    /// [`Lane::flush`].
    ///
    /// # Errors
    /// [`LaneError::NotConnected`] or [`LaneError::Disconnected`].
    pub fn send(&mut self, to: Neighbour, frame: lane_frame::Frame) -> Result<(), LaneError> {
        let peer = self.index_of(to);
        let link = self.link(to).ok_or(LaneError::NotConnected { peer })?;
        // Inside the runtime: a task that is woken from outside costs a system call, and makes the next wait
        // return once for nothing.
        let queued = self.runtime.block_on(async { link.outgoing.send(LaneFrame { frame: Some(frame) }) });
        if !queued {
            *self.slot(to) = None;
            return Err(LaneError::Disconnected { peer, reason: "the stream has ended".to_owned() });
        }
        Ok(())
    }

    /// Lets the sockets take what is queued, as far as they do so at once. Costs a turn of the runtime.
    pub fn carry(&mut self) {
        self.runtime.block_on(link::let_tasks_run());
    }

    /// Waits until the transport has taken what was queued for both neighbours. Needed before the
    /// thread turns to work during which it does not wait in the lane, such as the fsync after a
    /// `Barrier`. What a full socket does not take at once, after long payloads that the peer has not
    /// read yet, stays in the transport (less than a megabyte) and leaves during the next wait.
    ///
    /// # Errors
    /// [`LaneError::Disconnected`] or [`LaneError::TimedOut`].
    pub fn flush(&mut self, patience: Duration) -> Result<(), LaneError> {
        for neighbour in [Neighbour::Next, Neighbour::Previous] {
            let peer = self.index_of(neighbour);
            let Some(link) = self.link(neighbour) else { continue };
            let drained = async { time::timeout(patience, link.outgoing.drained()).await };
            match self.runtime.block_on(drained) {
                Ok(true) => {}
                Ok(false) => {
                    *self.slot(neighbour) = None;
                    let reason = "the stream ended before all frames had left".to_owned();
                    return Err(LaneError::Disconnected { peer, reason });
                }
                Err(_) => return Err(LaneError::timed_out(peer, "take what was sent", patience)),
            }
        }
        Ok(())
    }

    /// Waits for the next frame of a neighbour.
    ///
    /// # Errors
    /// [`LaneError::NotConnected`], [`LaneError::TimedOut`], [`LaneError::Disconnected`],
    /// [`LaneError::Replaced`] or [`LaneError::Interrupted`].
    pub fn receive(&mut self, from: Neighbour, patience: Duration) -> Result<LaneFrame, LaneError> {
        let party = self.party;
        let peer = neighbour_index(party, from);
        let Self { runtime, interrupt, next, previous, waiting, accepted, .. } = self;
        let slot = match from {
            Neighbour::Next => &mut *next,
            Neighbour::Previous => &mut *previous,
        };
        let link = slot.as_mut().ok_or(LaneError::NotConnected { peer })?;
        let outcome = runtime.block_on(async {
            tokio::select! {
                biased;
                frame = link.receive() => Some(frame),
                Some(newer) = accepted.recv() => {
                    *waiting = Some(newer);
                    None
                }
                () = interrupt.wait() => Some(Err(LaneError::Interrupted)),
                () = time::sleep(patience) => {
                    Some(Err(LaneError::timed_out(peer, "send the expected frame", patience)))
                }
            }
        });
        match outcome {
            Some(Ok(frame)) => Ok(frame),
            Some(Err(error)) => {
                if !matches!(error, LaneError::TimedOut { .. } | LaneError::Interrupted) {
                    *slot = None;
                }
                Err(error)
            }
            None => {
                *previous = None;
                Err(LaneError::Replaced { peer: neighbour_index(party, Neighbour::Previous) })
            }
        }
    }

    /// Waits for a frame of either neighbour or for `other`, whichever is first, at most for
    /// `patience`. A link that is down is left out. `other` must be safe to drop before it finishes.
    ///
    /// # Errors
    /// [`LaneError::Disconnected`] or [`LaneError::Replaced`].
    pub fn next_event<T>(
        &mut self,
        other: impl Future<Output = T>,
        patience: Duration,
    ) -> Result<LaneEvent<T>, LaneError> {
        let peer = self.index_of(Neighbour::Previous);
        let Self { runtime, next, previous, waiting, accepted, .. } = self;
        let woken = runtime.block_on(async {
            tokio::select! {
                frame = receive_or_wait(next.as_mut()) => Woken::Frame(Neighbour::Next, frame),
                frame = receive_or_wait(previous.as_mut()) => Woken::Frame(Neighbour::Previous, frame),
                Some(newer) = accepted.recv() => Woken::Dialled(newer),
                value = other => Woken::Other(value),
                () = time::sleep(patience) => Woken::TimedOut,
            }
        });
        match woken {
            Woken::Frame(from, Ok(frame)) => Ok(LaneEvent::Frame(from, frame)),
            Woken::Frame(from, Err(error)) => {
                *self.slot(from) = None;
                Err(error)
            }
            Woken::Dialled(newer) => {
                *waiting = Some(newer);
                match previous.take() {
                    Some(_) => Err(LaneError::Replaced { peer }),
                    None => Ok(LaneEvent::PeerDialled),
                }
            }
            Woken::Other(value) => Ok(LaneEvent::Other(value)),
            Woken::TimedOut => Ok(LaneEvent::TimedOut),
        }
    }

    /// Whether the certificates that the links were opened with are still valid. The caller chooses the moment
    /// to look, for a link that is given up ends what goes on over it.
    ///
    /// # Errors
    /// [`LaneError::CertificateEnded`].
    pub fn check_certificates(&self) -> Result<(), LaneError> {
        let links = [Neighbour::Next, Neighbour::Previous].map(|neighbour| self.link(neighbour));
        match links.into_iter().flatten().find(|link| link.has_expired()) {
            Some(link) => {
                Err(LaneError::CertificateEnded { peer: link.peer, ended: utc(link.certificates_end) })
            }
            None => Ok(()),
        }
    }

    /// Runs a future on the lane's runtime; the sockets make progress meanwhile.
    pub fn block_on<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    fn link(&self, neighbour: Neighbour) -> Option<&Link> {
        match neighbour {
            Neighbour::Next => self.next.as_ref(),
            Neighbour::Previous => self.previous.as_ref(),
        }
    }

    fn slot(&mut self, neighbour: Neighbour) -> &mut Option<Link> {
        match neighbour {
            Neighbour::Next => &mut self.next,
            Neighbour::Previous => &mut self.previous,
        }
    }
}

/// What ended the wait of [`Lane::next_event`], before the lane's state is adapted.
enum Woken<T> {
    Frame(Neighbour, Result<LaneFrame, LaneError>),
    Dialled(Link),
    Other(T),
    TimedOut,
}

async fn receive_or_wait(link: Option<&mut Link>) -> Result<LaneFrame, LaneError> {
    match link {
        Some(link) => link.receive().await,
        None => pending().await,
    }
}

/// Dials until it succeeds, a repeat cannot help, or the time is up.
async fn dial_until(dialler: &Dialler, deadline: Instant, patience: Duration) -> Result<Link, LaneError> {
    let mut pause = Duration::from_millis(20);
    let mut last = None;
    loop {
        match time::timeout_at(deadline.into(), dialler.dial()).await {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(error)) if !error.is_passing() => return Err(error),
            Ok(Err(error)) => last = Some(error),
            Err(_) => {
                return Err(last.unwrap_or_else(|| LaneError::timed_out(dialler.peer(), "answer", patience)));
            }
        }
        time::sleep_until((Instant::now() + pause).min(deadline).into()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Index of a neighbour of server `party`.
fn neighbour_index(party: u8, neighbour: Neighbour) -> u8 {
    let servers = SERVERS as u8;
    match neighbour {
        Neighbour::Next => (party + 1) % servers,
        Neighbour::Previous => (party + servers - 1) % servers,
    }
}
