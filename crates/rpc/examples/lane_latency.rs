//! Measures the link between servers: round trips of small messages and the flow of large ones, over
//! mutual TLS on loopback.
//!
//! `cargo run --release -p concilium-rpc --example lane_latency [ROUNDS]`
#![allow(clippy::print_stdout, reason = "the figures are the purpose of the program")]

use std::{
    error::Error,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use concilium_mpc::{Address, Channel as _, Neighbour, Protocol, Step};
use concilium_rpc::{
    certificates::Authority,
    identity::Identity,
    lane::{CompareModels, Lane, LaneChannel, LaneConfig, system_randomness},
    tls::TlsMaterial,
    v1::{CompareModelRequest, compare_model_response::Outcome},
};

type Failure = Box<dyn Error + Send + Sync>;

const PATIENCE: Duration = Duration::from_secs(30);

struct NoModels;

impl CompareModels for NoModels {
    fn compare(&self, _: u8, _: &CompareModelRequest) -> Outcome {
        Outcome::Unknown
    }
}

/// Servers 0 and 1 play; server 2 completes the ring. Returns the time of one round.
fn play(lane: &mut Lane, session: u64, rounds: u32, bytes: usize) -> Result<Duration, Failure> {
    let party = lane.party();
    let mut channel = LaneChannel::new(lane, session, PATIENCE);
    let begin = Instant::now();
    for round in 0..rounds {
        let address = Address {
            session,
            step: Step { sequence: round, protocol: Protocol::PolynomialExchange },
            record: 0,
        };
        match party {
            0 => {
                channel.send(Neighbour::Next, address, vec![1; bytes])?;
                channel.receive(Neighbour::Next, address)?;
            }
            1 => {
                channel.receive(Neighbour::Previous, address)?;
                channel.send(Neighbour::Previous, address, vec![2; bytes])?;
            }
            _ => break,
        }
    }
    let elapsed = begin.elapsed();
    lane.flush(PATIENCE)?;
    Ok(elapsed / rounds)
}

fn serve(
    index: usize,
    listener: TcpListener,
    next: SocketAddr,
    tls: TlsMaterial,
    rounds: u32,
    meeting: &Barrier,
) -> Result<(), Failure> {
    let models = Arc::new(NoModels);
    let next_address = next.to_string();
    let mut lane = Lane::new(LaneConfig {
        lane: 0,
        listener,
        next_address,
        tls: tls.into(),
        tasks: Vec::new(),
        models,
        randomness: system_randomness(),
    })?;
    lane.connect(PATIENCE)?;
    for (session, (bytes, rounds)) in
        [(64, rounds), (4096, rounds), (65_536, rounds / 10), (1 << 20, rounds / 50)].into_iter().enumerate()
    {
        meeting.wait();
        let rounds = rounds.max(1);
        play(&mut lane, 2 * session as u64, rounds.div_ceil(10), bytes)?;
        let round = play(&mut lane, 2 * session as u64 + 1, rounds, bytes)?;
        if index == 0 {
            let rate = 2.0 * bytes as f64 / round.as_secs_f64() / 1e6;
            println!("{bytes:>8} bytes there and back: {round:>10.1?}  {rate:>8.1} MB/s");
        }
        meeting.wait();
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let rounds = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let authority = Authority::create()?;
    let folder = tempfile::tempdir()?;
    let mut servers = Vec::new();
    for index in 0..3 {
        let issued = authority.issue(&Identity::server(index)?, &[], 1)?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        servers.push((listener, address, issued.save(folder.path())?.load()?));
    }
    let addresses: Vec<_> = servers.iter().map(|(_, address, _)| *address).collect();
    let meeting = Barrier::new(3);
    thread::scope(|scope| {
        let threads: Vec<_> = servers
            .into_iter()
            .enumerate()
            .map(|(index, (listener, _, tls))| {
                let (next, meeting) = (addresses[(index + 1) % 3], &meeting);
                scope.spawn(move || serve(index, listener, next, tls, rounds, meeting))
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a server's thread panicked")??;
        }
        Ok(())
    })
}
