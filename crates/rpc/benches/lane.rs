//! Rounds between three servers over mutual TLS on loopback, each server on a thread of its own.
//!
//! - *turn*: servers 0 and 1 answer each other, so that each message waits for the one before. A round is
//!   one message.
//! - *exchange*: every server sends to the next one and waits for the previous one's message, as for an
//!   AND. A round is three messages.
//!
//! For each the elapsed time of a round, and the CPU time that the three servers spend on it together:
//! on a loaded machine only that says something.

use std::hint::black_box;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use concilium_mpc::party::MAXIMUM_RECORD_BYTES;
use concilium_mpc::{Address, Bytes, Channel as _, Neighbour, Protocol, Step};
use concilium_rpc::certificates::Authority;
use concilium_rpc::identity::Identity;
use concilium_rpc::lane::{CompareModels, Lane, LaneChannel, LaneConfig, system_randomness};
use concilium_rpc::tls::TlsMaterial;
use concilium_rpc::v1::{CompareModelRequest, compare_model_response::Outcome};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};

const PATIENCE: Duration = Duration::from_secs(60);

/// Lengths of messages, in bytes: a small one, two of a layer, and one of a large batch.
const LENGTHS: [usize; 4] = [64, 4 << 10, 64 << 10, 1 << 20];

#[derive(Clone, Copy)]
enum Pattern {
    Turn,
    Exchange,
}

/// What all three servers are to do.
#[derive(Clone)]
struct Task {
    pattern: Pattern,
    rounds: u64,
    bytes: usize,
    /// Servers that have done it.
    finished: Arc<AtomicUsize>,
}

/// Elapsed time, and CPU time of the server's thread.
type Spent = [Duration; 2];

struct NoModels;

impl CompareModels for NoModels {
    fn compare(&self, _: u8, _: &CompareModelRequest) -> Outcome {
        Outcome::Unknown
    }
}

fn now() -> Spent {
    let duration = |clock| {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    [duration(ClockId::Monotonic), duration(ClockId::ThreadCPUTime)]
}

/// The addresses and lengths of the records that a message is cut into.
fn records(address: Address, bytes: usize) -> impl Iterator<Item = (Address, usize)> {
    let starts = (0..bytes).step_by(MAXIMUM_RECORD_BYTES).enumerate();
    starts.map(move |(record, start)| {
        (Address { record: record as u32, ..address }, MAXIMUM_RECORD_BYTES.min(bytes - start))
    })
}

/// Sends a new message, as a protocol does.
fn send(channel: &mut LaneChannel<'_>, to: Neighbour, address: Address, bytes: usize) {
    let mut message = Bytes::from(vec![1; bytes]);
    for (address, length) in records(address, bytes) {
        channel.send(to, address, message.split_to(length)).expect("the peer is there");
    }
}

fn receive(channel: &mut LaneChannel<'_>, from: Neighbour, address: Address, bytes: usize) {
    let mut message = Vec::with_capacity(bytes);
    for (address, length) in records(address, bytes) {
        let payload = channel.receive(from, address).expect("the peer sends");
        assert_eq!(payload.len(), length);
        message.extend_from_slice(&payload);
    }
    black_box(message);
}

fn run(lane: &mut Lane, session: u64, task: &Task) -> Spent {
    let party = lane.party();
    let mut channel = LaneChannel::new(lane, session, PATIENCE);
    let begin = now();
    for round in 0..task.rounds {
        let step = Step { sequence: round as u32, protocol: Protocol::PolynomialExchange };
        let address = Address { session, step, record: 0 };
        match (task.pattern, party) {
            (Pattern::Exchange, _) => {
                send(&mut channel, Neighbour::Next, address, task.bytes);
                receive(&mut channel, Neighbour::Previous, address, task.bytes);
            }
            (Pattern::Turn, 0) if round % 2 == 0 => send(&mut channel, Neighbour::Next, address, task.bytes),
            (Pattern::Turn, 0) => receive(&mut channel, Neighbour::Next, address, task.bytes),
            (Pattern::Turn, 1) if round % 2 == 0 => {
                receive(&mut channel, Neighbour::Previous, address, task.bytes);
            }
            (Pattern::Turn, 1) => send(&mut channel, Neighbour::Previous, address, task.bytes),
            (Pattern::Turn, _) => break,
        }
    }
    let end = now();
    // What is left in the transport moves only while the thread waits in the lane.
    task.finished.fetch_add(1, Ordering::SeqCst);
    while task.finished.load(Ordering::SeqCst) < 3 {
        lane.next_event(std::future::pending::<()>(), Duration::from_millis(1)).expect("the links hold");
    }
    [end[0] - begin[0], end[1] - begin[1]]
}

/// One server's thread.
struct Server {
    tasks: mpsc::Sender<Task>,
    spent: mpsc::Receiver<Spent>,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(listener: TcpListener, next_address: String, tls: TlsMaterial) -> Self {
        let (tasks, todo) = mpsc::channel::<Task>();
        let (results, spent) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut lane = Lane::open(LaneConfig {
                lanes: 1,
                listener,
                next_address,
                tls: tls.into(),
                tasks: Vec::new(),
                models: Arc::new(NoModels),
                randomness: system_randomness(),
            })
            .expect("the certificates are sound")
            .remove(0);
            lane.connect(PATIENCE).expect("the others are there");
            for (session, task) in todo.into_iter().enumerate() {
                results.send(run(&mut lane, session as u64, &task)).expect("they are waited for");
            }
        });
        Server { tasks, spent, thread }
    }
}

struct Servers([Server; 3]);

impl Servers {
    fn start() -> Self {
        let authority = Authority::create().expect("the system has randomness");
        let folder = tempfile::tempdir().expect("there is room for certificates");
        let listeners = [0, 1, 2].map(|_| TcpListener::bind(("127.0.0.1", 0)).expect("a port is free"));
        let addresses = [0, 1, 2].map(|index: usize| listeners[index].local_addr().expect("it is bound"));
        let mut index = 0;
        Servers(listeners.map(|listener| {
            let identity = Identity::server(index as u8).expect("there are three servers");
            let issued = authority.issue(&identity, &[], 1).expect("the authority is sound");
            let files = issued.save(folder.path()).expect("there is room for certificates");
            let next = addresses[(index + 1) % 3].to_string();
            index += 1;
            Server::start(listener, next, files.load().expect("the certificate is sound"))
        }))
    }

    /// The longest elapsed time, and the sum of the CPU times.
    fn time(&self, pattern: Pattern, rounds: u64, bytes: usize) -> Spent {
        // Both directions equally often.
        let rounds = rounds.next_multiple_of(2);
        let task = Task { pattern, rounds, bytes, finished: Arc::default() };
        for server in &self.0 {
            server.tasks.send(task.clone()).expect("the server runs");
        }
        let spent = self.0.each_ref().map(|server| server.spent.recv().expect("the server runs"));
        let longest = spent.iter().map(|spent| spent[0]).max().unwrap_or_default();
        [longest, spent.iter().map(|spent| spent[1]).sum()]
    }

    fn stop(self) {
        for Server { tasks, spent, thread } in self.0 {
            drop((tasks, spent));
            thread.join().expect("the server ended well");
        }
    }
}

fn lanes(criterion: &mut Criterion) {
    let servers = Servers::start();
    for (name, pattern) in [("turn", Pattern::Turn), ("exchange", Pattern::Exchange)] {
        let mut group = criterion.benchmark_group(name);
        group
            .sample_size(20)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(300));
        for bytes in LENGTHS {
            group.throughput(Throughput::Bytes(bytes as u64));
            for (place, clock) in ["elapsed", "CPU"].into_iter().enumerate() {
                group.bench_function(BenchmarkId::new(clock, bytes), |bencher| {
                    bencher.iter_custom(|rounds| {
                        let spent = servers.time(pattern, rounds, bytes);
                        spent[place].mul_f64(rounds as f64 / rounds.next_multiple_of(2) as f64)
                    });
                });
            }
        }
        group.finish();
    }
    servers.stop();
}

criterion_group!(benches, lanes);
criterion_main!(benches);
