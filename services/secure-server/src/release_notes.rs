//! Notes in the ledger that answers have left, written together after a while.
//!
//! A note makes nothing safe: the charge is durable before anything leaves. It spares a later repeat of the
//! request the way through the other servers, and keeps the ends of the peers' ledgers across a restart. A
//! flush of the disk for each batch would delay the next one for it; what a crash takes is asked of the other
//! servers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use concilium_privacy::{Ledger, LedgerError, LedgerHead, PeerHead, RequestKey};
use tokio::sync::Notify;

use crate::context::Context;

/// How long a note waits for others.
const DELAY: Duration = Duration::from_millis(20);

/// The notes that are not in the ledger yet.
#[derive(Default)]
pub struct ReleaseNotes {
    pending: Mutex<Pending>,
    added: Notify,
}

#[derive(Default)]
struct Pending {
    keys: Vec<RequestKey>,
    /// The last end that each peer's ledger was seen to have.
    peers: BTreeMap<u8, LedgerHead>,
}

impl ReleaseNotes {
    /// Notes that the answers to `keys` have left, and where the peers' ledgers ended then.
    pub(crate) fn add(&self, keys: Vec<RequestKey>, peers: [PeerHead; 2]) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.keys.extend(keys);
        pending.peers.extend(peers.map(|PeerHead { peer, head }| (peer, head)));
        drop(pending);
        self.added.notify_one();
    }

    /// Writes what is pending.
    ///
    /// # Errors
    /// What the ledger says; the notes are lost then.
    pub(crate) fn write(&self, ledger: &dyn Ledger) -> Result<(), LedgerError> {
        let Pending { keys, peers } =
            std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        let peers: Vec<_> = peers.into_iter().map(|(peer, head)| PeerHead { peer, head }).collect();
        ledger.mark_released(&keys, &peers)
    }
}

/// Writes notes as they come, those of a while together. Whoever ends this writes the last ones.
pub(crate) async fn follow(context: Arc<Context>) {
    loop {
        context.release_notes.added.notified().await;
        tokio::time::sleep(DELAY).await;
        let writer = Arc::clone(&context);
        // Otherwise the runtime ends.
        let Ok(()) = tokio::task::spawn_blocking(move || write_or_tell(&writer)).await else { return };
    }
}

/// Writes what is pending; a failure costs nothing but the notes.
pub(crate) fn write_or_tell(context: &Context) {
    if let Err(error) = context.release_notes.write(context.ledger.as_ref()) {
        tracing::warn!(server = %context.here, %error, "could not note that results were released");
    }
}
