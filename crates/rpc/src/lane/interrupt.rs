//! Ends a wait on a lane from another thread.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// Ends the waits for messages on one lane, the present one and those to come, until the lane is
/// disconnected. Without it a thread that computes on a lane would wait its full patience for the messages of
/// a server that has given the batch up on another lane.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Inner>);

#[derive(Default)]
struct Inner {
    raised: AtomicBool,
    changed: Notify,
}

impl Interrupt {
    /// Ends the waits.
    pub fn raise(&self) {
        self.0.raised.store(true, Ordering::Release);
        // A permit stays for a wait that has looked already and does not wait yet.
        self.0.changed.notify_one();
    }

    /// Lets waits last again.
    pub(super) fn clear(&self) {
        self.0.raised.store(false, Ordering::Release);
    }

    /// Waits until the waits are to end.
    pub(super) async fn wait(&self) {
        while !self.0.raised.load(Ordering::Acquire) {
            self.0.changed.notified().await;
        }
    }
}
