//! What the parts of one server share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use concilium_mpc::PartyIndex;
use concilium_privacy::Ledger;
use concilium_rpc::identity::AllowedIdentities;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::LaneStatus;

use crate::config::LimitSection;
use crate::models::ModelStore;
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
    /// The privacy budget.
    pub ledger: Arc<dyn Ledger>,
    /// Requests that wait for a batch.
    pub room: Arc<WaitingRoom>,
    /// Bounds on work and waiting.
    pub limits: LimitSection,
    /// Whom this server serves.
    pub allowed: AllowedIdentities,
    /// The lane's state.
    pub lane: LaneState,
    /// When the server started.
    pub started: Instant,
}

/// The state of the lane, for the status and for messages to clients.
#[derive(Default)]
pub struct LaneState {
    connected: [AtomicBool; 2],
    batches: AtomicU64,
    failed_batches: AtomicU64,
    last_error: Mutex<String>,
}

impl LaneState {
    /// Notes whether the next and the previous server are connected.
    pub fn set_connected(&self, next: bool, previous: bool) {
        self.connected[0].store(next, Ordering::Relaxed);
        self.connected[1].store(previous, Ordering::Relaxed);
    }

    /// Whether both other servers are connected.
    pub fn is_connected(&self) -> bool {
        self.connected.iter().all(|connected| connected.load(Ordering::Relaxed))
    }

    /// Counts a batch that was released.
    pub fn count_batch(&self) {
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a batch that failed.
    pub fn count_failure(&self) {
        self.failed_batches.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the last failure.
    pub fn note_error(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    fn last_error(&self) -> String {
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
        }
    }
}
