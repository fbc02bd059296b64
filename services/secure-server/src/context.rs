//! What the parts of one server share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use concilium_mpc::PartyIndex;
use concilium_privacy::{Clock, Ledger};
use concilium_rpc::identity::AllowedIdentities;
use concilium_rpc::reload::ReloadableTls;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::{LaneStatus, PeerStatus};

use crate::config::LimitSection;
use crate::history::History;
use crate::ledger_watch::LedgerWatch;
use crate::models::{ModelSets, ModelStore};
use crate::progress::{LaneProgress, Wait};
use crate::release_notes::ReleaseNotes;
use crate::self_test::SelfTests;
use crate::task::Tasks;
use crate::waiting::WaitingRoom;

/// What the parts of one server share.
pub struct Context {
    /// This server's place.
    pub here: PartyIndex,
    /// The tasks.
    pub tasks: Tasks,
    /// The owners' models.
    pub models: Arc<ModelStore>,
    /// Which models answered what.
    pub model_sets: ModelSets,
    /// Models that wait for their self-test.
    pub self_tests: SelfTests,
    /// The privacy budget.
    pub ledger: Arc<dyn Ledger>,
    /// Releases that the ledger has not been told of yet.
    pub release_notes: ReleaseNotes,
    /// What is known of the other servers' ledgers.
    pub watch: LedgerWatch,
    /// Requests that wait for a batch.
    pub room: Arc<WaitingRoom>,
    /// Bounds on work and waiting.
    pub limits: LimitSection,
    /// Whom this server serves.
    pub allowed: AllowedIdentities,
    /// This server's certificate, as it is now.
    pub tls: ReloadableTls,
    /// The lane's state.
    pub lane: LaneState,
    /// What the tasks were asked lately.
    pub history: History,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// When the server started.
    pub started: Instant,
}

/// The state of the lanes, for the status and for messages to clients.
pub struct LaneState {
    connected: [AtomicBool; 2],
    peers: Mutex<[PeerState; 2]>,
    batches: AtomicU64,
    failed_batches: AtomicU64,
    /// When the last batch failed, in milliseconds since 1970-01-01 UTC, or zero.
    failed_at_ms: AtomicU64,
    last_error: Mutex<String>,
    /// What each lane does and waits for. The servers agree on the first; each of the others computes.
    pub progress: Vec<LaneProgress>,
}

/// What is known of one of the two other servers.
#[derive(Clone, Default)]
struct PeerState {
    /// When the link came up or broke, in milliseconds since 1970-01-01 UTC.
    since_ms: u64,
    last_error: String,
    version: String,
}

impl LaneState {
    /// The state of this many lanes for computing, and the one on which the servers agree.
    pub fn new(computing: usize) -> Self {
        LaneState {
            connected: Default::default(),
            peers: Mutex::default(),
            batches: AtomicU64::default(),
            failed_batches: AtomicU64::default(),
            failed_at_ms: AtomicU64::default(),
            last_error: Mutex::default(),
            progress: (0..=computing).map(|_| LaneProgress::default()).collect(),
        }
    }

    /// What is done and waited for on the lane on which the servers agree.
    pub(crate) fn control(&self) -> &LaneProgress {
        &self.progress[0]
    }

    /// The longest wait of now.
    pub(crate) fn longest_wait(&self) -> Option<Wait> {
        self.progress.iter().filter_map(LaneProgress::current_wait).max_by_key(Wait::waited)
    }

    /// Notes whether the next and the previous server are connected, at this time in milliseconds since
    /// 1970-01-01 UTC.
    pub fn set_connected(&self, next: bool, previous: bool, now_ms: u64) {
        for (place, connected) in [next, previous].into_iter().enumerate() {
            let before = self.connected[place].swap(connected, Ordering::Relaxed);
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            if before != connected || peers[place].since_ms == 0 {
                peers[place].since_ms = now_ms;
            }
        }
    }

    /// Notes the versions of the next and the previous server's programs.
    pub fn note_versions(&self, versions: [&str; 2]) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        for (peer, version) in peers.iter_mut().zip(versions) {
            version.clone_into(&mut peer.version);
        }
    }

    /// Notes why the link to the server of this index broke or did not come about.
    pub fn note_peer_error(&self, here: PartyIndex, peer: u8, error: &str) {
        let place = usize::from(here.next().number() != usize::from(peer));
        error.clone_into(&mut self.peers.lock().unwrap_or_else(PoisonError::into_inner)[place].last_error);
    }

    /// The two other servers as operators are told about them, ordered by index.
    pub fn peers_to_wire(&self, here: PartyIndex) -> Vec<PeerStatus> {
        let states = self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let places = [here.next(), here.previous()].into_iter().zip(self.connected()).zip(states);
        let mut peers: Vec<_> = places
            .map(|((party, connected), state)| PeerStatus {
                party: party.number() as u32,
                connected,
                since_unix_ms: i64::try_from(state.since_ms).unwrap_or(i64::MAX),
                last_error: state.last_error,
                version: state.version,
            })
            .collect();
        peers.sort_by_key(|peer| peer.party);
        peers
    }

    /// Whether the next and the previous server are connected.
    pub fn connected(&self) -> [bool; 2] {
        self.connected.each_ref().map(|connected| connected.load(Ordering::Relaxed))
    }

    /// Whether both other servers are connected.
    pub fn is_connected(&self) -> bool {
        self.connected() == [true; 2]
    }

    /// Counts a batch that was released.
    pub fn count_batch(&self) {
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a batch that failed at `now_ms`.
    pub fn count_failure(&self, now_ms: u64) {
        self.failed_batches.fetch_add(1, Ordering::Relaxed);
        self.failed_at_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When the last batch failed, in milliseconds since 1970-01-01 UTC.
    pub fn failed_at_ms(&self) -> Option<u64> {
        Some(self.failed_at_ms.load(Ordering::Relaxed)).filter(|&time| time > 0)
    }

    /// Notes the last failure.
    pub fn note_error(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// The last failure, or empty.
    pub fn last_error(&self) -> String {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a client is told whose request was dropped by a failing batch or lane.
    pub fn failure(&self) -> RpcError {
        let error = self.last_error();
        let step = if error.is_empty() { "the batch was given up".to_owned() } else { error };
        RpcError::PeerUnavailable { peer: "another server".to_owned(), step }
    }

    /// The state as it is told to operators.
    pub fn to_wire(&self) -> LaneStatus {
        LaneStatus {
            lane: 0,
            next_connected: self.connected[0].load(Ordering::Relaxed),
            previous_connected: self.connected[1].load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
            failed_batches: self.failed_batches.load(Ordering::Relaxed),
            last_error: self.last_error(),
            wait: self.longest_wait().map(Wait::to_wire),
        }
    }
}
