//! One stream between two servers: how it comes about and what it keeps.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use concilium_mpc::PairwiseKeys;
use tokio::{
    sync::{Notify, mpsc},
    time,
};
use tokio_stream::Stream;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use zeroize::Zeroizing;

use super::{FillRandom, LaneError, PROTOCOL_VERSION};
use crate::{
    connect::{ConnectError, describe, explain, quiet_endpoint},
    identity::SERVERS,
    reload::ReloadableTls,
    socket,
    status::RpcError,
    tls::TlsMaterial,
    v1::{Hello, LaneFrame, TaskPolicy, lane_frame::Frame, peer_client::PeerClient},
};

/// How long the other side may take to introduce itself.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Most tasks that a peer may announce; far more than any server can serve.
const MAX_TASKS: usize = 10_000;

/// Longest version of a program that is kept, in characters.
const MAX_VERSION: usize = 64;

/// What a server tells about itself on every new stream, except for the fresh contribution.
#[derive(Clone)]
pub(super) struct Introduction {
    pub(super) party: u8,
    /// Number of the lane.
    pub(super) lane: u8,
    /// How many lanes this server has.
    pub(super) lanes: u8,
    pub(super) tasks: Arc<[TaskPolicy]>,
    pub(super) randomness: FillRandom,
}

/// What the other side told about itself.
pub(super) struct Introduced {
    pub(super) contribution: Contribution,
    pub(super) lanes: usize,
    pub(super) tasks: Vec<TaskPolicy>,
    pub(super) version: String,
}

/// 32 random bytes towards the key of a pair. SECRET.
pub(super) type Contribution = Zeroizing<[u8; 32]>;

impl Introduction {
    /// The first frame of a stream and the contribution in it.
    pub(super) fn hello(&self) -> Result<(LaneFrame, Contribution), RpcError> {
        let mut contribution = Zeroizing::new([0; 32]);
        (self.randomness)(contribution.as_mut_slice()).map_err(|error| RpcError::Internal {
            problem: format!("the source of randomness failed: {error}"),
        })?;
        let hello = Hello {
            party: self.party.into(),
            protocol_version: PROTOCOL_VERSION,
            lane: self.lane.into(),
            lanes: self.lanes.into(),
            key_contribution: Bytes::copy_from_slice(contribution.as_slice()),
            tasks: self.tasks.to_vec(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok((LaneFrame { frame: Some(Frame::Hello(hello)) }, contribution))
    }

    /// Reads and checks the first frame of the other side, whose certificate says that it is `peer`.
    pub(super) async fn expect_hello(
        &self,
        peer: u8,
        incoming: &mut Streaming<LaneFrame>,
    ) -> Result<Introduced, RpcError> {
        let silent = |step: &str| RpcError::PeerUnavailable {
            peer: format!("server {peer}"),
            step: format!("waiting for its introduction: {step}"),
        };
        let frame = time::timeout(HELLO_TIMEOUT, incoming.message())
            .await
            .map_err(|_| silent("nothing came"))?
            .map_err(|status| silent(&describe(&status)))?
            .ok_or_else(|| silent("the stream ended"))?;
        let wrong = |field: &str, problem: String| RpcError::InvalidRequest {
            field: format!("hello.{field}"),
            problem: format!("of server {peer} {problem}"),
        };
        let Some(Frame::Hello(hello)) = frame.frame else {
            return Err(wrong("frame", "is missing: the first frame must be Hello".to_owned()));
        };
        if hello.party != u32::from(peer) {
            return Err(wrong("party", format!("is {}, but its certificate says {peer}", hello.party)));
        }
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(wrong(
                "protocol_version",
                format!(
                    "is {}, but server {} speaks {PROTOCOL_VERSION}: run the same release on all servers",
                    hello.protocol_version, self.party
                ),
            ));
        }
        if hello.lane != u32::from(self.lane) {
            return Err(wrong("lane", format!("is {}, but this is lane {}", hello.lane, self.lane)));
        }
        if hello.tasks.len() > MAX_TASKS {
            return Err(wrong("tasks", format!("has {} entries, above {MAX_TASKS}", hello.tasks.len())));
        }
        let contribution = <[u8; 32]>::try_from(&hello.key_contribution[..])
            .map_err(|_| wrong("key_contribution", "does not have 32 bytes".to_owned()))?;
        // For people only, so it is cut and not refused.
        let version = hello.version.chars().take(MAX_VERSION).collect();
        let lanes = usize::try_from(hello.lanes).unwrap_or(usize::MAX);
        Ok(Introduced { contribution: Zeroizing::new(contribution), lanes, tasks: hello.tasks, version })
    }
}

/// The key that the two ends of a stream share: the acceptor is server j of K_j, the dialler j - 1.
pub(super) fn pair_key(dialler: &Contribution, acceptor: &Contribution) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(PairwiseKeys::join(acceptor, dialler))
}

/// How many frames are queued and not yet taken by the transport.
#[derive(Default)]
struct Backlog {
    frames: AtomicUsize,
    changed: Notify,
}

/// The near end of a queue of frames.
pub(super) struct Outgoing {
    sender: mpsc::UnboundedSender<LaneFrame>,
    backlog: Arc<Backlog>,
}

impl Outgoing {
    /// Queues a frame; `false` if the stream has ended.
    pub(super) fn send(&self, frame: LaneFrame) -> bool {
        self.backlog.frames.fetch_add(1, Ordering::AcqRel);
        self.sender.send(frame).is_ok()
    }

    /// Waits until the transport has taken every frame; `false` if the stream ended before that.
    pub(super) async fn drained(&self) -> bool {
        loop {
            let changed = self.backlog.changed.notified();
            if self.backlog.frames.load(Ordering::Acquire) == 0 {
                let_tasks_run().await;
                return true;
            }
            if self.sender.is_closed() {
                return false;
            }
            tokio::select! {
                () = changed => {}
                () = self.sender.closed() => {}
            }
        }
    }
}

/// Lets the tasks that the runtime has ready carry frames from a queue through HTTP/2 and TLS to the
/// socket. Each of these layers is one task that wakes the next; all that are awake run in one turn, after
/// which the runtime looks at the sockets. What these have made awake runs in the second.
pub(super) async fn let_tasks_run() {
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
}

/// The far end of a queue of frames: the stream that the transport reads.
pub(super) struct FrameQueue {
    receiver: mpsc::UnboundedReceiver<LaneFrame>,
    backlog: Arc<Backlog>,
}

impl Stream for FrameQueue {
    type Item = LaneFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<LaneFrame>> {
        let frame = ready!(self.receiver.poll_recv(context));
        if frame.is_some() && self.backlog.frames.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.backlog.changed.notify_one();
        }
        Poll::Ready(frame)
    }
}

/// A queue of frames and its two ends.
pub(super) fn queue() -> (Outgoing, FrameQueue) {
    // Unbounded, because a send must never wait: what a batch sends is bounded by the batch.
    let (sender, receiver) = mpsc::unbounded_channel();
    let backlog = Arc::new(Backlog::default());
    (Outgoing { sender, backlog: Arc::clone(&backlog) }, FrameQueue { receiver, backlog })
}

/// One stream to one peer, introduced and ready.
pub(super) struct Link {
    pub(super) peer: u8,
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Streaming<LaneFrame>,
    /// How many lanes the peer has.
    pub(super) lanes: usize,
    pub(super) tasks: Vec<TaskPolicy>,
    pub(super) version: String,
    pub(super) pair_key: Zeroizing<[u8; 32]>,
    /// When the first of the certificates ends that the link was opened with, as far as this side knows
    /// them, in seconds since 1970-01-01 UTC. The dialling side knows its own, the other one both.
    pub(super) certificates_end: i64,
}

impl Link {
    /// Whether the transport has given up the stream.
    pub(super) fn has_ended(&self) -> bool {
        self.outgoing.sender.is_closed()
    }

    /// Whether a certificate that the link was opened with has ended.
    pub(super) fn has_expired(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(now.as_secs()).is_ok_and(|now| now > self.certificates_end)
    }

    /// The next frame. Nothing is lost if the future is dropped before it finishes.
    pub(super) async fn receive(&mut self) -> Result<LaneFrame, LaneError> {
        let lost = |reason| LaneError::Disconnected { peer: self.peer, reason };
        match self.incoming.message().await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(lost("it ended the stream".to_owned())),
            Err(status) => Err(lost(describe(&status))),
        }
    }
}

/// Dials the next server.
pub(super) struct Dialler {
    introduction: Introduction,
    peer: u8,
    address: String,
    tls: ReloadableTls,
}

impl Dialler {
    pub(super) fn new(
        introduction: Introduction,
        address: String,
        tls: ReloadableTls,
    ) -> Result<Self, ConnectError> {
        let peer = (introduction.party + 1) % SERVERS as u8;
        // Made anew for each attempt, but an address that is none is told at once.
        quiet_endpoint(peer, &address, &tls.current())?;
        Ok(Self { introduction, peer, address, tls })
    }

    /// Index of the server that is dialled.
    pub(super) fn peer(&self) -> u8 {
        self.peer
    }

    /// One attempt to open the stream.
    pub(super) async fn dial(&self) -> Result<Link, LaneError> {
        let refused = |source| LaneError::Refused { peer: self.peer, source };
        let tls = self.tls.current();
        let channel: Channel = quiet_endpoint(self.peer, &self.address, &tls)?
            .connect_with_connector(socket::connector(self.introduction.lane))
            .await
            .map_err(|error| explain(self.peer, &self.address, &tls, &error))?;
        let (hello, own) = self.introduction.hello().map_err(refused)?;
        let (outgoing, queue) = queue();
        if !outgoing.send(hello) {
            return Err(LaneError::Disconnected { peer: self.peer, reason: "the queue closed".to_owned() });
        }
        let response = PeerClient::new(channel)
            .lane(Request::new(queue))
            .await
            .map_err(|status| self.explain_status(&status, &tls))?;
        let mut incoming = response.into_inner();
        let theirs = self.introduction.expect_hello(self.peer, &mut incoming).await.map_err(refused)?;
        let pair_key = pair_key(&own, &theirs.contribution);
        let Introduced { lanes, tasks, version, .. } = theirs;
        let certificates_end = tls.info().not_after;
        Ok(Link { peer: self.peer, outgoing, incoming, lanes, tasks, version, pair_key, certificates_end })
    }

    /// Tells a refusal by the peer's program from a refusal by its TLS layer, which in TLS 1.3 comes
    /// only after the handshake is done on our side.
    fn explain_status(&self, status: &Status, tls: &TlsMaterial) -> LaneError {
        let transport = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
        match RpcError::from_status(status) {
            RpcError::Unrecognised { code, .. } if transport.contains(&code) => {
                explain(self.peer, &self.address, tls, status).into()
            }
            source => LaneError::Refused { peer: self.peer, source },
        }
    }
}
