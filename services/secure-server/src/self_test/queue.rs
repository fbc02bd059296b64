//! Which versions wait for their self-test, and who waits for the outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use concilium_rpc::status::RpcError;
use tokio::sync::{Notify, oneshot};

use crate::models::ModelKey;

/// Names a version as the three servers know it: by its content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TestKey {
    /// The model.
    pub model: ModelKey,
    /// The content of the version.
    pub content_digest: [u8; 32],
}

type Outcome = Result<(), RpcError>;

/// The self-tests that are due.
#[derive(Default)]
pub struct SelfTests {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// On server 0: to be tested. On the others: to be announced.
    due: BTreeSet<TestKey>,
    waiting: BTreeMap<TestKey, Vec<oneshot::Sender<Outcome>>>,
}

impl SelfTests {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a test; the receiver gets its outcome.
    pub fn ask(&self, key: TestKey) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.lock();
        inner.due.insert(key.clone());
        let waiting = inner.waiting.entry(key).or_default();
        waiting.retain(|sender| !sender.is_closed());
        waiting.push(sender);
        drop(inner);
        self.changed.notify_waiters();
        receiver
    }

    /// On server 0: another server asks for a test.
    pub fn note(&self, key: TestKey) {
        self.lock().due.insert(key);
    }

    /// A test that is due, which is not due any more then.
    pub fn take_due(&self) -> Option<TestKey> {
        self.lock().due.pop_first()
    }

    /// Whether a test is due.
    pub fn is_due(&self) -> bool {
        !self.lock().due.is_empty()
    }

    /// On a new connection: every test that is waited for is due again.
    pub fn begin_again(&self) {
        let mut inner = self.lock();
        inner.waiting.retain(|_, waiting| waiting.iter().any(|sender| !sender.is_closed()));
        inner.due = inner.waiting.keys().cloned().collect();
    }

    /// Tells all who wait for a test how it ended.
    pub fn finish(&self, key: &TestKey, outcome: &Outcome) {
        let mut inner = self.lock();
        inner.due.remove(key);
        for sender in inner.waiting.remove(key).unwrap_or_default() {
            let _ = sender.send(outcome.clone());
        }
    }

    /// Tells all who wait that there are no tests now.
    pub fn fail_all(&self, error: &RpcError) {
        let Inner { waiting, .. } = std::mem::take(&mut *self.lock());
        for sender in waiting.into_values().flatten() {
            let _ = sender.send(Err(error.clone()));
        }
    }

    /// Waits until a test is due.
    pub async fn wait_until_due(&self) {
        loop {
            // Registered before looking, so that what comes in between is not missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_due() {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: &str) -> TestKey {
        let (task, owner, model) = ("votes".to_owned(), "ward".to_owned(), model.to_owned());
        TestKey { model: ModelKey { task, owner, model }, content_digest: [7; 32] }
    }

    #[tokio::test]
    async fn everybody_who_asks_is_told_and_a_test_is_due_once() {
        let tests = SelfTests::default();
        let (first, second, other) = (tests.ask(key("a")), tests.ask(key("a")), tests.ask(key("b")));
        tests.wait_until_due().await;
        assert_eq!(tests.take_due(), Some(key("a")));
        assert_eq!(tests.take_due(), Some(key("b")));
        assert_eq!(tests.take_due(), None);
        tests.finish(&key("a"), &Ok(()));
        assert_eq!((first.await, second.await), (Ok(Ok(())), Ok(Ok(()))));
        // Only "b" is still waited for.
        tests.begin_again();
        assert_eq!((tests.take_due(), tests.take_due()), (Some(key("b")), None));
        let gone = RpcError::Internal { problem: "gone".to_owned() };
        tests.fail_all(&gone);
        assert_eq!(other.await.expect("told").expect_err("failed").to_string(), gone.to_string());
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_due_again() {
        let tests = SelfTests::default();
        drop(tests.ask(key("a")));
        tests.begin_again();
        assert_eq!(tests.take_due(), None);
        tests.note(key("c"));
        assert_eq!(tests.take_due(), Some(key("c")));
    }
}
