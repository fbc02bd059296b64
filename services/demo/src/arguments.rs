//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use concilium_client_library::inputs::{ReadError, Source};
use concilium_network::limits::{MAXIMUM_FRACTIONAL_BITS, MINIMUM_FRACTIONAL_BITS};
use concilium_privacy::{Mechanism, NoiseScale, Release};

use crate::bench::options::{BenchArguments, EXAMPLES as BENCH_EXAMPLES};

/// Most rows of one request, as servers limit it.
const MAXIMUM_BATCH: u64 = 4096;

const EXAMPLES: &str = "\
Examples:
  concilium-demo
  concilium-demo --release histogram --sigma 3 --queries 50 --json demo.json
  concilium-demo --models my-models --inputs rows.npy --labels labels.npy --sigma 4
  concilium-demo --models my-models --inputs data.npz:x_test --labels data.npz:y_test --laplace 4
  concilium-demo bench --owners 50 --batch 16      what a query costs; see concilium-demo bench --help

The report goes to standard output, everything else to standard error.

Exit codes:
  0    done
  1    a local fault: a file could not be written, a server did not start
  2    the command line, a model or an input is refused
  3    the servers refuse or disagree
  4    a server does not answer
  129, 130, 143  stopped by SIGHUP, Ctrl-C or SIGTERM";

/// Runs the whole job on this machine: three servers, many owners and one client.
///
/// Makes certificates in a temporary folder, starts three server processes that talk mutual TLS over
/// loopback, shares every owner's model among them, asks for predictions through the ordinary client
/// and reports accuracy, latency, traffic and spent budget. Everything is stopped and deleted at the
/// end.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What the program does when it does not demonstrate anything.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What to demonstrate.
    #[command(flatten)]
    pub demonstration: Demonstration,
}

/// What the program does besides its main job.
#[derive(Subcommand)]
pub enum Command {
    /// Measures what a query costs: times, rounds, traffic and memory.
    ///
    /// Makes networks of the given size with random weights, shares them among three parties and asks.
    /// Everything is stopped and deleted at the end.
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Box<BenchArguments>),
    /// Runs one of the three servers until its standard input ends.
    #[command(hide = true)]
    Server {
        /// The server's configuration file.
        #[arg(long)]
        config: PathBuf,
    },
}

/// Models, inputs and noise of a demonstration.
#[derive(Args)]
pub struct Demonstration {
    /// Folder with the owners' models: each *.onnx file is one owner, sorted by name. Without it the
    /// fifty owners of handwritten digits that the project ships.
    #[arg(long, value_name = "DIR", requires = "inputs")]
    pub models: Option<PathBuf>,
    /// Rows to predict: FILE.npy, FILE.npz:member or a numeric FILE.csv.
    #[arg(long, value_name = "FILE", value_parser = source)]
    pub inputs: Option<Source>,
    /// Right classes of these rows (0, 1, ...), in the same formats; gives accuracies.
    #[arg(long, value_name = "FILE", value_parser = source, requires = "inputs")]
    pub labels: Option<Source>,
    /// What the client gets for each row.
    #[arg(long, value_enum, default_value = "label")]
    pub release: ReleaseArgument,
    /// Standard deviation of discrete Gaussian noise that any two servers guarantee, in votes, at
    /// least 2 [default: 5].
    #[arg(long, value_name = "S", conflicts_with = "laplace")]
    pub sigma: Option<NoiseScale>,
    /// Scale of discrete Laplace noise that any two servers guarantee, in votes, at least 2.
    #[arg(long, value_name = "B")]
    pub laplace: Option<NoiseScale>,
    /// How many rows to predict, from the first one on [default: 200, or all if there are fewer].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub queries: Option<u64>,
    /// Rows of one request.
    #[arg(long, value_name = "B", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=MAXIMUM_BATCH))]
    pub batch: u64,
    /// How many of the owners take part, from the first one on [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub owners: Option<u64>,
    /// Fractional bits of the fixed-point numbers [default: the most that every model allows].
    #[arg(long, value_name = "F", value_parser = clap::value_parser!(u32)
        .range(MINIMUM_FRACTIONAL_BITS as i64..=MAXIMUM_FRACTIONAL_BITS as i64))]
    pub fractional_bits: Option<u32>,
    /// Works in this folder, which must be absent or empty, and leaves it: certificates with their
    /// keys, configurations, logs, ledgers and model shares.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Writes all figures and the released value of each query to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReleaseArgument {
    /// The noisy votes of every class.
    Histogram,
    /// The class with the most noisy votes.
    Label,
}

impl From<ReleaseArgument> for Release {
    fn from(release: ReleaseArgument) -> Self {
        match release {
            ReleaseArgument::Histogram => Release::Histogram,
            ReleaseArgument::Label => Release::Label,
        }
    }
}

impl Demonstration {
    /// The noise asked for; whether policy allows it is not checked.
    pub fn mechanism(&self) -> Mechanism {
        const DEFAULT_SIGMA: NoiseScale = NoiseScale::from_millionths(5 * NoiseScale::UNITS_PER_ONE);
        match self.laplace {
            Some(scale) => Mechanism::DiscreteLaplace { scale },
            None => Mechanism::DiscreteGaussian { sigma: self.sigma.unwrap_or(DEFAULT_SIGMA) },
        }
    }
}

fn source(text: &str) -> Result<Source, ReadError> {
    Source::parse(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(arguments: &str) -> Result<Arguments, String> {
        Arguments::try_parse_from(format!("concilium-demo {arguments}").split_whitespace())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let demonstration = parse("").unwrap().demonstration;
        assert_eq!(demonstration.mechanism(), Mechanism::DiscreteGaussian { sigma: "5".parse().unwrap() });
        assert_eq!((demonstration.batch, demonstration.queries), (16, None));
        assert_eq!(Release::from(demonstration.release), Release::Label);
        let laplace = parse("--laplace 2.5").unwrap().demonstration.mechanism();
        assert_eq!(laplace, Mechanism::DiscreteLaplace { scale: "2.5".parse().unwrap() });
    }

    #[test]
    fn arguments_that_cannot_work_are_refused() {
        for (arguments, told) in [
            ("--models d", "--inputs"),
            ("--labels l.npy", "--inputs"),
            ("--inputs x.txt", "x.txt"),
            ("--sigma 3 --laplace 3", "--laplace"),
            ("--sigma minus", "minus"),
            ("--batch 0", "--batch"),
            ("--batch 4097", "4096"),
            ("--queries 0", "--queries"),
            ("--fractional-bits 64", "--fractional-bits"),
            ("--release votes", "histogram"),
            ("server", "--config"),
        ] {
            let message = parse(arguments).err().unwrap_or_else(|| panic!("{arguments} must be refused"));
            assert!(message.contains(told), "{arguments}: {message}");
        }
    }
}
