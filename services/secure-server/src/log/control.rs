//! Change of the filter while the server runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::filter::LogFilter;

/// What is logged now, and the way to change it.
#[derive(Clone)]
pub struct LogControl {
    shared: Arc<Shared>,
}

struct Shared {
    handle: reload::Handle<EnvFilter, Registry>,
    state: Mutex<State>,
}

struct State {
    current: LogFilter,
    /// What a temporary filter ends in.
    kept: LogFilter,
    /// When the current filter ends.
    until: Option<SystemTime>,
    /// Counts changes, so that the end of a temporary filter leaves a later one alone.
    changes: u64,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogState {
    /// The filter before the call.
    pub previous: LogFilter,
    /// The filter now.
    pub current: LogFilter,
    /// When it ends and what follows, if it is temporary.
    pub reverts: Option<(SystemTime, LogFilter)>,
}

/// The logger that the filter belongs to is gone.
#[derive(Debug, Error)]
#[error("the log's filter can't be changed: {0}")]
pub struct LogControlError(#[from] reload::Error);

impl LogControl {
    pub(super) fn new(handle: reload::Handle<EnvFilter, Registry>, filter: LogFilter) -> Self {
        let state = State { kept: filter.clone(), current: filter, until: None, changes: 0 };
        LogControl { shared: Arc::new(Shared { handle, state: Mutex::new(state) }) }
    }

    /// What is logged now.
    pub fn state(&self) -> LogState {
        let state = self.shared.lock();
        state.tell(state.current.clone())
    }

    /// Logs what `filter` says, for `duration` or else until the process ends. Needs a runtime, on
    /// which a temporary filter ends.
    ///
    /// # Errors
    /// [`LogControlError`].
    pub fn set(&self, filter: LogFilter, duration: Option<Duration>) -> Result<LogState, LogControlError> {
        let mut state = self.shared.lock();
        self.shared.handle.reload(filter.to_env_filter())?;
        let previous = std::mem::replace(&mut state.current, filter);
        state.changes += 1;
        state.until = duration.map(|duration| SystemTime::now() + duration);
        match duration {
            Some(duration) => {
                let (control, change) = (self.clone(), state.changes);
                tokio::spawn(async move {
                    tokio::time::sleep(duration).await;
                    control.revert(change);
                });
            }
            None => state.kept = state.current.clone(),
        }
        Ok(state.tell(previous))
    }

    /// Ends the temporary filter of this change, unless there was another change since.
    fn revert(&self, change: u64) {
        let mut state = self.shared.lock();
        if state.changes != change {
            return;
        }
        if self.shared.handle.reload(state.kept.to_env_filter()).is_err() {
            // The logger is gone: the process is at its end.
            return;
        }
        state.current = state.kept.clone();
        state.until = None;
        let filter = state.current.clone();
        drop(state);
        tracing::info!(%filter, "the temporary log filter has ended");
    }
}

impl Shared {
    /// Nothing panics while it holds the lock, so a poisoned lock still guards a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&self, previous: LogFilter) -> LogState {
        let reverts = self.until.map(|until| (until, self.kept.clone()));
        LogState { previous, current: self.current.clone(), reverts }
    }
}
