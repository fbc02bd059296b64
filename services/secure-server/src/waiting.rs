//! Requests whose parts have arrived at this server and that wait for a batch.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concilium_mpc::input::Component;
use concilium_privacy::{ContentDigest, RequestKey};
use concilium_rpc::status::RpcError;
use tokio::sync::{Notify, oneshot};

use crate::answer::Answer;
use crate::turns::{Candidate, Turns};

/// When to come back, told to a client that finds the room full.
const RETRY_AFTER_MS: u64 = 200;

/// This server's part of one request.
pub struct Waiting {
    /// Who asked, and under which id.
    pub key: RequestKey,
    /// Digest of everything that this server was sent: a repeat must be equal.
    pub content: ContentDigest,
    /// Digest of the public part, equal on all three servers.
    pub public: [u8; 32],
    /// Rows of the request.
    pub rows: u32,
    /// Component i of server i.
    pub own: Component,
    /// Component i + 1 of server i.
    pub next: Component,
    /// Digests of components i and i + 1, for comparison with the neighbours.
    pub digests: [[u8; 32]; 2],
    /// When it arrived here.
    pub arrived: Instant,
    /// Number of the arrival, given by the room.
    pub arrival: u64,
    /// Where the answer goes.
    pub respond: oneshot::Sender<Result<Answer, RpcError>>,
}

impl Waiting {
    /// Sends the answer or refusal. A client that has gone away can ask again under the same id.
    pub fn finish(self, outcome: Result<Answer, RpcError>) {
        let _ = self.respond.send(outcome);
    }
}

#[derive(Default)]
struct Inner {
    /// In order of arrival; may name requests that have left.
    order: VecDeque<RequestKey>,
    requests: HashMap<RequestKey, Waiting>,
    /// Arrivals of which the leader has not been told.
    unannounced: Vec<RequestKey>,
    /// Kept results that were sent again, of which the other servers have not been told.
    replayed: Vec<RequestKey>,
    /// Results that another server has released, and when it said so.
    released_elsewhere: HashMap<RequestKey, Instant>,
    /// Counts arrivals.
    arrivals: u64,
    /// Whose turn it is.
    turns: Turns,
}

impl Inner {
    /// Forgets the places of requests that have left, when there are too many of them.
    fn tidy(&mut self) {
        let Inner { order, requests, unannounced, .. } = self;
        if order.len() > 2 * requests.len() + 64 {
            order.retain(|key| requests.contains_key(key));
        }
        if unannounced.len() > 2 * requests.len() + 64 {
            unannounced.retain(|key| requests.contains_key(key));
        }
    }
}

/// The requests that wait on one server.
pub struct WaitingRoom {
    inner: Mutex<Inner>,
    changed: Notify,
    capacity: usize,
}

/// A place in the room; giving it up (the client has gone away) withdraws the request.
pub struct Place {
    room: Arc<WaitingRoom>,
    key: RequestKey,
    /// The number of the arrival: the same id may have come again after this one was taken.
    arrival: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.room.lock();
        if inner.requests.get(&self.key).is_some_and(|entry| entry.arrival == self.arrival) {
            inner.requests.remove(&self.key);
        }
    }
}

impl WaitingRoom {
    /// A room for `capacity` requests.
    pub fn new(capacity: usize) -> Self {
        WaitingRoom { inner: Mutex::default(), changed: Notify::new(), capacity }
    }

    /// Nothing panics while it holds the lock, so a poisoned lock still guards a sound state.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// [`RpcError::InProgress`] when the id waits already, [`RpcError::Overloaded`] when the room
    /// is full, or when the client has more places than are left.
    pub fn enter(self: &Arc<Self>, mut waiting: Waiting) -> Result<Place, RpcError> {
        let key = waiting.key.clone();
        let arrival = {
            let mut inner = self.lock();
            if inner.requests.contains_key(&key) {
                return Err(RpcError::InProgress { request_id: key.request.to_string() });
            }
            let own = inner.requests.keys().filter(|other| other.client == key.client).count();
            let free = self.capacity.saturating_sub(inner.requests.len());
            // A client has no more places than are left for all others.
            if own > free || free == 0 {
                let what = match free {
                    0 => format!("the queue of {} requests", self.capacity),
                    _ => format!("this client's part of the queue, with {own} requests,"),
                };
                return Err(RpcError::Overloaded { what, retry_after_ms: RETRY_AFTER_MS });
            }
            inner.order.push_back(key.clone());
            inner.unannounced.push(key.clone());
            inner.arrivals += 1;
            waiting.arrival = inner.arrivals;
            inner.requests.insert(key.clone(), waiting);
            inner.tidy();
            inner.arrivals
        };
        self.changed.notify_waiters();
        Ok(Place { room: Arc::clone(self), key, arrival })
    }

    /// How many requests wait for a task.
    pub fn count(&self, task: &str) -> usize {
        self.lock().requests.keys().filter(|key| key.task == task).count()
    }

    /// A task and the keys of requests of it for which `ready` holds and that fit in `maximum_rows` together:
    /// those of the clients whose turn it is, each client's in order of arrival. The first is always among
    /// them. They stay in the room.
    pub fn next_batch(
        &self,
        maximum_rows: usize,
        ready: impl Fn(&RequestKey) -> bool,
    ) -> Option<(String, Vec<RequestKey>)> {
        let mut inner = self.lock();
        let Inner { order, requests, turns, .. } = &mut *inner;
        order.retain(|key| requests.contains_key(key));
        let ready: Vec<&RequestKey> = order.iter().filter(|key| ready(key)).collect();
        let candidates: Vec<_> = ready
            .iter()
            .map(|key| Candidate { client: &key.client, task: &key.task, rows: requests[key].rows as usize })
            .collect();
        let batch: Vec<RequestKey> =
            turns.choose(&candidates, maximum_rows).into_iter().map(|place| ready[place].clone()).collect();
        Some((batch.first()?.task.clone(), batch))
    }

    /// Rows of the requests for which `ready` holds.
    pub fn rows(&self, ready: impl Fn(&RequestKey) -> bool) -> usize {
        let inner = self.lock();
        inner
            .requests
            .values()
            .filter(|waiting| ready(&waiting.key))
            .map(|waiting| waiting.rows as usize)
            .sum()
    }

    /// Takes the requests out that arrived more than `age` ago and for which `wanted` holds.
    pub fn take_older(&self, age: Duration, wanted: impl Fn(&RequestKey) -> bool) -> Vec<Waiting> {
        let mut inner = self.lock();
        let old = |waiting: &&Waiting| waiting.arrived.elapsed() > age && wanted(&waiting.key);
        let keys: Vec<_> = inner.requests.values().filter(old).map(|waiting| waiting.key.clone()).collect();
        keys.iter().filter_map(|key| inner.requests.remove(key)).collect()
    }

    /// Whether a request waits here.
    pub fn contains(&self, key: &RequestKey) -> bool {
        self.lock().requests.contains_key(key)
    }

    /// The arrivals of which the leader has not been told yet.
    pub fn take_unannounced(&self) -> Vec<RequestKey> {
        let mut inner = self.lock();
        let Inner { requests, unannounced, .. } = &mut *inner;
        std::mem::take(unannounced).into_iter().filter(|key| requests.contains_key(key)).collect()
    }

    /// Lets everything be announced again: the leader forgets arrivals with the connection.
    pub fn announce_again(&self) {
        let mut inner = self.lock();
        inner.unannounced = inner.requests.keys().cloned().collect();
    }

    /// Takes a request out of the room, if it is there and its client still waits.
    pub fn take(&self, key: &RequestKey) -> Option<Waiting> {
        self.lock().requests.remove(key).filter(|waiting| !waiting.respond.is_closed())
    }

    /// Puts a request back that was taken and will be planned again, unless its client has gone.
    pub fn put_back(&self, waiting: Waiting) {
        if waiting.respond.is_closed() {
            return;
        }
        let mut inner = self.lock();
        inner.order.push_front(waiting.key.clone());
        inner.requests.insert(waiting.key.clone(), waiting);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Fails all waiting requests.
    pub fn fail_all(&self, error: &RpcError) {
        let requests: Vec<_> = self.lock().requests.drain().map(|(_, waiting)| waiting).collect();
        requests.into_iter().for_each(|waiting| waiting.finish(Err(error.clone())));
    }

    /// Waits until `wanted` holds.
    async fn wait_until(&self, wanted: impl Fn(&Inner) -> bool) {
        loop {
            // Registered before looking, so that an arrival in between is not missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if wanted(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// How many requests have arrived so far.
    pub fn arrivals(&self) -> u64 {
        self.lock().arrivals
    }

    /// Waits until more than `seen` requests have arrived, or the others are to be told of a replay.
    pub async fn wait_for_arrival(&self, seen: u64) {
        self.wait_until(|inner| inner.arrivals > seen || !inner.replayed.is_empty()).await;
    }

    /// Waits until there is something of which the other servers have not been told.
    pub async fn wait_for_news(&self) {
        self.wait_until(|inner| !inner.unannounced.is_empty() || !inner.replayed.is_empty()).await;
    }

    /// Notes that a kept result was sent again. All three servers hold it, but after a crash one of
    /// the others may not know that it may release its part: it is told.
    pub fn note_replay(&self, key: &RequestKey) {
        self.lock().replayed.push(key.clone());
        self.changed.notify_waiters();
    }

    /// The replays of which the other servers have not been told yet.
    pub fn take_replayed(&self) -> Vec<RequestKey> {
        std::mem::take(&mut self.lock().replayed)
    }

    /// Notes that another server has released results, and takes those requests out that wait here.
    pub fn note_released(&self, keys: impl Iterator<Item = RequestKey>) -> Vec<Waiting> {
        let mut inner = self.lock();
        let mut waiting = Vec::new();
        for key in keys {
            waiting.extend(inner.requests.remove(&key));
            inner.released_elsewhere.insert(key, Instant::now());
        }
        waiting
    }

    /// Takes a request out that waits here although another server has released its result.
    pub fn take_released(&self, key: &RequestKey) -> Option<Waiting> {
        let mut inner = self.lock();
        inner.released_elsewhere.contains_key(key).then(|| inner.requests.remove(key)).flatten()
    }

    /// Forgets releases of which the others told more than `age` ago.
    pub fn forget_released(&self, age: Duration) {
        self.lock().released_elsewhere.retain(|_, since| since.elapsed() <= age);
    }
}

#[cfg(test)]
mod tests {
    use concilium_privacy::RequestId;

    use super::*;

    type Outcome = oneshot::Receiver<Result<Answer, RpcError>>;

    fn request(task: &str, number: u8, rows: u32) -> (Waiting, Outcome) {
        let (respond, outcome) = oneshot::channel();
        let waiting = Waiting {
            key: RequestKey {
                task: task.to_owned(),
                epoch: 1,
                client: "alice".to_owned(),
                request: RequestId([number; 16]),
            },
            content: ContentDigest([0; 32]),
            public: [0; 32],
            rows,
            own: Component::Seed([0; 32]),
            next: Component::Seed([0; 32]),
            digests: [[0; 32]; 2],
            arrived: Instant::now(),
            arrival: 0,
            respond,
        };
        (waiting, outcome)
    }

    fn numbers(batch: Option<(String, Vec<RequestKey>)>) -> Vec<u8> {
        batch.map(|(_, keys)| keys.iter().map(|key| key.request.0[0]).collect()).unwrap_or_default()
    }

    #[test]
    fn batches_are_of_one_task_in_order_of_arrival_and_bounded() {
        let room = Arc::new(WaitingRoom::new(10));
        let mut kept = Vec::new();
        for (task, number, rows) in [("a", 1, 3), ("b", 2, 1), ("a", 3, 4), ("a", 4, 2)] {
            let (waiting, outcome) = request(task, number, rows);
            kept.push((room.enter(waiting).expect("there is room"), outcome));
        }
        assert_eq!(numbers(room.next_batch(100, |_| true)), [1, 3, 4]);
        assert_eq!(numbers(room.next_batch(7, |_| true)), [1, 3]);
        // The oldest runs even if it is larger than a batch should be.
        assert_eq!(numbers(room.next_batch(2, |_| true)), [1]);
        assert_eq!(numbers(room.next_batch(100, |key| key.request.0[0] != 1)), [2]);
        assert_eq!(room.rows(|key| key.task == "a"), 9);
        // A client that goes away withdraws its request.
        kept.remove(0);
        assert_eq!(numbers(room.next_batch(100, |_| true)), [2]);
        assert_eq!(room.count("a"), 2);
    }

    #[test]
    fn the_same_id_and_one_too_many_are_refused() {
        let room = Arc::new(WaitingRoom::new(2));
        let (waiting, _outcome) = request("a", 1, 1);
        let _place = room.enter(waiting).expect("there is room");
        let (waiting, _) = request("a", 1, 1);
        assert_eq!(
            room.enter(waiting).err().map(|error| error.reason().to_owned()),
            Some("IN_PROGRESS".into())
        );
        let (waiting, _outcome) = request("a", 2, 1);
        let _other = room.enter(waiting).expect("there is room");
        let (waiting, _) = request("a", 3, 1);
        let refusal = room.enter(waiting).err().expect("the room is full");
        assert_eq!(refusal.reason(), "OVERLOADED");
        assert!(refusal.retryable());
    }

    #[test]
    fn a_client_leaves_as_many_places_as_it_has() {
        let room = Arc::new(WaitingRoom::new(20));
        let mut kept = Vec::new();
        let mut enter = |client: &str, number: u8| {
            let (mut waiting, outcome) = request("a", number, 1);
            waiting.key.client = client.to_owned();
            let place = room.enter(waiting);
            place.map(|place| kept.push((place, outcome))).map_err(|error| error.reason().to_owned())
        };
        let entered = |client: &str, enter: &mut dyn FnMut(&str, u8) -> Result<(), String>| {
            (0..30).take_while(|&number| enter(client, number).is_ok()).count()
        };
        assert_eq!(entered("greedy", &mut enter), 11);
        assert_eq!(enter("greedy", 99), Err("OVERLOADED".to_owned()));
        assert_eq!(entered("second", &mut enter), 5);
        assert_eq!(entered("third", &mut enter), 3);
    }

    #[test]
    fn arrivals_are_announced_once_and_again_on_demand() {
        let room = Arc::new(WaitingRoom::new(10));
        let (waiting, _outcome) = request("a", 1, 1);
        let place = room.enter(waiting).expect("there is room");
        assert_eq!(room.take_unannounced().len(), 1);
        assert!(room.take_unannounced().is_empty());
        room.announce_again();
        assert_eq!(room.take_unannounced().len(), 1);
        room.announce_again();
        drop(place);
        assert!(room.take_unannounced().is_empty(), "a request that has left is not announced");
    }

    #[test]
    fn a_late_departure_does_not_withdraw_a_newer_arrival_of_the_same_id() {
        let room = Arc::new(WaitingRoom::new(10));
        let (waiting, _first) = request("a", 1, 1);
        let key = waiting.key.clone();
        let late = room.enter(waiting).expect("there is room");
        let taken = room.take(&key).expect("it waits");
        let (waiting, _second) = request("a", 1, 1);
        let _place = room.enter(waiting).expect("the first was taken");
        drop((late, taken));
        assert!(room.take(&key).is_some());
    }

    #[test]
    fn requests_without_a_client_are_not_taken_or_put_back() {
        let room = Arc::new(WaitingRoom::new(10));
        let (waiting, outcome) = request("a", 1, 1);
        let key = waiting.key.clone();
        let place = room.enter(waiting).expect("there is room");
        let taken = room.take(&key).expect("it waits");
        drop(outcome);
        room.put_back(taken);
        assert!(room.take(&key).is_none());
        drop(place);
    }
}
