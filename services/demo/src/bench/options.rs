//! What to measure: the command line of `bench`, and its limits.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use concilium_network::{Ring, RingError};
use concilium_privacy::Release;
use serde::Serialize;

use super::error::BenchError;
use super::network::{NetworkSpec, NetworkSpecError};
use super::shaping::Shape;
use super::tables::TableSet;

/// Most owners of a measurement.
pub const MAXIMUM_OWNERS: usize = 1000;
/// Most rows of one request, as servers limit it.
pub const MAXIMUM_BATCH: usize = 4096;
/// Most measured requests of each client.
pub const MAXIMUM_REPEAT: usize = 100_000;
/// Most clients at a time.
pub const MAXIMUM_CLIENTS: usize = 256;
/// Longest delay of a link.
pub const MAXIMUM_DELAY_MS: f64 = 5_000.0;
/// Slowest and fastest link that is shaped.
pub const BANDWIDTH_MBIT: std::ops::RangeInclusive<f64> = 0.1..=100_000.0;

pub(crate) const EXAMPLES: &str = "\
Examples:
  concilium-demo bench
      One owner's 784-128-128-10 network, one row, three server processes over mutual TLS.
  concilium-demo bench --network lenet --batch 32 --owners 10 --json lenet.json
  concilium-demo bench --owners 50 --release label --delay-ms 20 --bandwidth-mbit 100
      Fifty owners' votes, the servers 20 ms of one-way delay apart.
  concilium-demo bench --owners 50 --clients 32 --repeat 50
      How many queries a second for 32 clients, whose requests the servers put into batches.
  concilium-demo bench --network model.onnx --transport memory --release logits
      The network alone, to compare with systems that release logits.
  concilium-demo bench --owners 50 --ring 32
      Fifty owners' votes for a task with a ring of 32 bits.
  concilium-demo bench --tables all > tables.md
      Every table of docs/performance.md.

What is measured:
  server_ms  from the arrival of a request's first share at any server to the last server's handing over of
             its result share. Over TLS it has everything that a real query pays: planning, the protocol, noise,
             the durable charge to three ledgers and the barrier before release. In memory it has the protocol
             and the noise; there is no ledger.
  client_ms  from rows in the client's memory to the opened answer: sharing, sending, waiting, opening.
  phases     means of one batch on each server, without waiting, and the waiting by itself.
  rounds, bytes and messages are those of the protocol, without framing, TLS and planning.
  Two requests of each client come before the clock starts. Weights and inputs are random, from the seed
  that is printed; inputs lie between 0 and 1.

  Logits, which are not noised, exist in memory only: servers have no way to open a value without noise,
  so --release logits with --transport tls is refused.

Progress goes to standard error, the report to standard output.";

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct BenchArguments {
    /// mlp:INPUT-HIDDEN-...-CLASSES, lenet, or the path of an .onnx file, which every owner has.
    #[arg(long, value_name = "NETWORK", default_value = "mlp:784-128-128-10", value_parser = network)]
    pub network: NetworkSpec,
    /// Owners, each with one model; 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub owners: usize,
    /// Rows of one request; 1 to 4096.
    #[arg(long, value_name = "B", default_value_t = 1)]
    pub batch: usize,
    /// What leaves the servers.
    #[arg(long, value_enum, default_value = "histogram")]
    pub release: BenchRelease,
    /// Measured requests of each client.
    #[arg(long, value_name = "R", default_value_t = 20)]
    pub repeat: usize,
    /// Width of the ring that models are evaluated in, 64 or 32.
    #[arg(long, value_name = "BITS", default_value = "64", value_parser = ring)]
    pub ring: Ring,
    /// Where the three parties are.
    #[arg(long, value_enum, default_value = "tls")]
    pub transport: Transport,
    /// One-way delay of every message between two servers, in milliseconds.
    #[arg(long, value_name = "D", default_value_t = 0.0)]
    pub delay_ms: f64,
    /// Speed of each link between two servers, for each direction [default: unlimited].
    #[arg(long, value_name = "M")]
    pub bandwidth_mbit: Option<f64>,
    /// Clients that ask at the same time.
    #[arg(long, value_name = "C", default_value_t = 1)]
    pub clients: usize,
    /// Seed of weights and inputs [default: another one each time].
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Makes tables of docs/performance.md in Markdown instead of one measurement.
    #[arg(long, value_name = "SET", value_enum, conflicts_with_all = [
        "network", "owners", "batch", "release", "ring", "transport", "delay_ms", "bandwidth_mbit", "clients", "keep",
    ])]
    pub tables: Option<TableSet>,
    /// Works in this folder, which must be absent or empty, and leaves it: configurations, logs, ledgers.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Writes all figures to this file: an object, or with --tables a list of objects.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl BenchArguments {
    /// The arguments of a line such as `--owners 50`.
    ///
    /// # Errors
    /// What clap says of it.
    pub(crate) fn of_line(line: &str) -> Result<Self, clap::Error> {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            bench: BenchArguments,
        }
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Ok(Line::try_parse_from(words)?.bench)
    }
}

fn network(text: &str) -> Result<NetworkSpec, NetworkSpecError> {
    text.parse()
}

fn ring(text: &str) -> Result<Ring, RingError> {
    // No width is written otherwise than as a small number.
    Ring::try_from(text.parse().unwrap_or(0))
}

/// What leaves the parties of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BenchRelease {
    /// Every model's outputs, without noise; in memory only.
    Logits,
    /// The noisy votes of every class.
    Histogram,
    /// The class with the most noisy votes.
    Label,
}

impl BenchRelease {
    /// The release of a server, if servers have it.
    pub(crate) fn of_servers(self) -> Option<Release> {
        match self {
            Self::Logits => None,
            Self::Histogram => Some(Release::Histogram),
            Self::Label => Some(Release::Label),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        self.of_servers().map_or("logits", Release::name)
    }
}

/// Where the three parties of a measurement are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Three threads of this process; no ledger, no planning.
    Memory,
    /// Three server processes over mutual TLS on loopback.
    Tls,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Tls => "tls",
        }
    }
}

/// One measurement, within all limits.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    pub(crate) network: NetworkSpec,
    pub(crate) owners: usize,
    pub(crate) batch: usize,
    pub(crate) release: BenchRelease,
    pub(crate) ring: Ring,
    pub(crate) repeat: usize,
    pub(crate) transport: Transport,
    pub(crate) shape: Shape,
    pub(crate) clients: usize,
    pub(crate) seed: u64,
    pub(crate) keep: Option<PathBuf>,
}

impl BenchOptions {
    /// Checks what the command line asks for.
    ///
    /// # Errors
    /// [`BenchError::Limit`], [`BenchError::LogitsOverTls`], [`BenchError::ClientsInMemory`].
    pub fn new(arguments: &BenchArguments) -> Result<Self, BenchError> {
        let BenchArguments { owners, batch, repeat, clients, release, transport, .. } = *arguments;
        for (option, found, most, remedy) in [
            ("owners", owners, MAXIMUM_OWNERS, "time and memory grow in proportion beyond it"),
            ("batch", batch, MAXIMUM_BATCH, "servers take no more rows in one request: use --clients"),
            ("repeat", repeat, MAXIMUM_REPEAT, "percentiles need no more"),
            ("clients", clients, MAXIMUM_CLIENTS, "use a larger --batch for more rows at a time"),
        ] {
            limit(option, found as f64, 1.0..=most as f64, remedy)?;
        }
        let delay = arguments.delay_ms;
        limit("delay-ms", delay, 0.0..=MAXIMUM_DELAY_MS, "servers give a peer up that is slower")?;
        if let Some(bandwidth) = arguments.bandwidth_mbit {
            limit("bandwidth-mbit", bandwidth, BANDWIDTH_MBIT, "leave it out for no limit")?;
        }
        if release == BenchRelease::Logits && transport == Transport::Tls {
            return Err(BenchError::LogitsOverTls);
        }
        if clients > 1 && transport == Transport::Memory {
            return Err(BenchError::ClientsInMemory(clients));
        }
        Ok(BenchOptions {
            network: arguments.network.clone(),
            owners,
            batch,
            release,
            ring: arguments.ring,
            repeat,
            transport,
            shape: Shape {
                delay: Duration::from_secs_f64(delay / 1e3),
                bits_per_second: arguments.bandwidth_mbit.map(|megabits| megabits * 1e6),
            },
            clients,
            seed: arguments.seed.unwrap_or_else(rand::random),
            keep: arguments.keep.clone(),
        })
    }
}

fn limit(
    option: &'static str,
    found: f64,
    limit: std::ops::RangeInclusive<f64>,
    remedy: &'static str,
) -> Result<(), BenchError> {
    // Also what is no number is outside.
    if limit.contains(&found) {
        return Ok(());
    }
    Err(BenchError::Limit { option, found, minimum: *limit.start(), maximum: *limit.end(), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<BenchOptions, BenchError> {
        BenchOptions::new(&BenchArguments::of_line(line).unwrap_or_else(|error| panic!("{error}")))
    }

    #[test]
    fn what_can_be_measured_is_taken() {
        let options = options("--owners 50 --delay-ms 20 --bandwidth-mbit 0.5 --seed 7").unwrap();
        assert_eq!((options.owners, options.batch, options.seed), (50, 1, 7));
        assert_eq!(options.shape.delay, Duration::from_millis(20));
        assert_eq!(options.shape.bits_per_second, Some(5e5));
        assert_eq!(options.ring, Ring::Bits64);
        assert_eq!(self::options("--ring 32").unwrap().ring, Ring::Bits32);
        assert!(self::options("--transport memory --release logits").is_ok());
        let refusal = BenchArguments::of_line("--ring 48").unwrap_err().to_string();
        assert!(refusal.contains("a ring of 48 bits is not supported; choose 64, or 32"), "{refusal}");
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_limit_and_remedy() {
        for (line, told) in [
            ("--owners 0", "--owners 0: the limit is 1 to 1000"),
            ("--owners 1001", "1 to 1000"),
            ("--batch 4097", "1 to 4096; servers take no more rows in one request"),
            ("--repeat 0", "--repeat"),
            ("--clients 257", "1 to 256"),
            ("--delay-ms=-1", "--delay-ms -1: the limit is 0 to 5000"),
            ("--delay-ms=NaN", "--delay-ms"),
            ("--bandwidth-mbit 0", "0.1 to 100000; leave it out"),
            ("--release logits", "--transport memory"),
            ("--release logits --transport tls", "no opening in a server"),
            ("--transport memory --clients 2", "--transport tls"),
        ] {
            let error = options(line).err().unwrap_or_else(|| panic!("{line} must be refused"));
            assert_eq!(error.class().code(), 2, "{line}");
            assert!(error.to_string().contains(told), "{line}: {error}");
        }
    }
}
