//! The command line.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use concilium_network::{Ring, RingError};
use concilium_privacy::NanoRho;

/// Check, share and withdraw a model owner's networks.
///
/// A model is split into secret shares on this machine; none of the three servers sees its weights.
/// What they see is its architecture: operations, sizes, number of classes and comparison windows.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Addresses of the servers and the files of this owner's certificate, in TOML.
    #[arg(long, global = true, env = "CONCILIUM_CONFIG", default_value = "owner.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show whether a model can be shared: operators, ranges, precision, cost, and a secure run.
    Check(CheckArguments),
    /// Share models for a task and wait until they are ready on all three servers.
    Share(ShareArguments),
    /// List this owner's models and their states on the three servers.
    List {
        /// Only the models of this task.
        #[arg(long, value_name = "TASK")]
        task: Option<String>,
        /// Also versions that were replaced or withdrawn.
        #[arg(long)]
        all: bool,
    },
    /// Take a model away from all three servers and erase its shares there.
    Withdraw {
        /// Name of the model.
        #[arg(value_name = "NAME")]
        name: String,
        /// Name of the task.
        #[arg(long, value_name = "TASK")]
        task: String,
        /// Why, for you and the operators: the model stays listed with it. At most 200 bytes.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

/// Arguments of `check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_CHECK_HELP)]
pub struct CheckArguments {
    /// The model.
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// Output that holds the scores of the classes, where several could.
    #[arg(long, value_name = "NAME")]
    pub output: Option<String>,
    /// Check against this task: of the servers, or of the task file if one is given.
    #[arg(long, value_name = "TASK", conflicts_with = "input_minimum")]
    pub task: Option<String>,
    /// The servers' task file; no server is asked then.
    #[arg(long, value_name = "FILE", requires = "task")]
    pub task_file: Option<PathBuf>,
    /// Smallest value of the features: one number, or one for each, separated by commas.
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "input_maximum"
    )]
    pub input_minimum: Vec<f64>,
    /// Largest value of the features: one number, or one for each, separated by commas.
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "input_minimum"
    )]
    pub input_maximum: Vec<f64>,
    /// Width of the ring, 64 or 32. A check in 64 bits says what 32 would give as well.
    #[arg(long, value_name = "BITS", default_value = "64", value_parser = ring, conflicts_with = "task")]
    pub ring_bits: Ring,
    /// Fractional bits, 8 to 20, or 6 to 14 in a ring of 32 bits; the most that fit are used otherwise.
    #[arg(long, value_name = "BITS", conflicts_with = "task")]
    pub fractional_bits: Option<u32>,
    /// Rows for the secure run, from a file of NumPy's: float32 or float64, [rows, ...]. Without ranges or a
    /// task, the least and the most of each column of a table, and of all numbers of an image, are taken for the
    /// ranges of the features.
    #[arg(long, value_name = "X.npy", conflicts_with_all = ["rows", "seed"])]
    pub inputs: Option<PathBuf>,
    /// Rows to draw for the secure run.
    #[arg(long, value_name = "N", default_value = "16")]
    pub rows: NonZeroUsize,
    /// Seed of the drawn rows, to repeat a run.
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Write the whole report to this file, as JSON; also when the model is refused.
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
}

/// Arguments of `share`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_SHARE_HELP)]
pub struct ShareArguments {
    /// The models; each is a vote of its own.
    #[arg(value_name = "MODEL.onnx", required = true)]
    pub models: Vec<PathBuf>,
    /// Name of the task.
    #[arg(long, value_name = "TASK")]
    pub task: String,
    /// Name of the model, of the characters a-z, 0-9 and -; otherwise the file's name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Output that holds the scores of the classes, where several could.
    #[arg(long, value_name = "NAME")]
    pub output: Option<String>,
    /// Share this one as the next version of a ready model of the same name, which votes until this one is
    /// ready on all three servers.
    #[arg(long)]
    pub replace: bool,
    /// Most that may be released about all your models of this task's epoch together, as rho; no bound of
    /// your own otherwise. Of several models the smallest holds. When it is reached, your models no longer
    /// take part.
    #[arg(long, value_name = "RHO")]
    pub budget_rho: Option<NanoRho>,
    /// State that the models were trained anew, on records that count in no earlier epoch of the task. A
    /// task whose epoch began with nothing spent takes no model without it.
    #[arg(long)]
    pub retrained_on_new_data: bool,
    /// Import and check only; nothing is sent.
    #[arg(long)]
    pub dry_run: bool,
    /// No progress bar.
    #[arg(long)]
    pub quiet: bool,
}

fn ring(text: &str) -> Result<Ring, RingError> {
    // No width is written otherwise than as a small number.
    Ring::try_from(text.parse().unwrap_or(0))
}

const AFTER_HELP: &str = "\
Examples:
  concilium-owner check model.onnx
  concilium-owner check model.onnx --input-minimum 0 --input-maximum 1
  concilium-owner check model.onnx --task digits
  concilium-owner share model.onnx --task digits
  concilium-owner list
  concilium-owner withdraw model --task digits

Configuration (owner.toml), with paths relative to the file; each key can be overridden by a
variable such as CONCILIUM_TLS__KEY:
  servers = [\"host0:7400\", \"host1:7400\", \"host2:7400\"]
  connect_timeout_ms = 10000
  request_timeout_ms = 120000
  [tls]
  ca = \"certificates/ca.pem\"
  certificate = \"certificates/owner-ward-7.pem\"
  key = \"certificates/owner-ward-7.key\"

Results go to standard output, everything else to standard error. RUST_LOG=info shows repeats.

Exit codes:
  0  done
  1  a file could not be written, or another local fault
  2  the command line, configuration or input is refused
  3  the servers refuse (budget, identity, policy) or disagree
  4  a server is unavailable; the same command may succeed later";

const AFTER_CHECK_HELP: &str = "\
The report shows, step by step, how large values can become for inputs within the ranges, and how
much room the ring leaves above them. The model is then run on random inputs by three parties in
this process, and every step is compared with plaintext. The last lines say whether a task with
a ring of 32 bits would do, for half of the memory and upload. Nothing is sent.

Examples:
  concilium-owner check model.onnx --task-file tasks.toml --task heart
  concilium-owner check model.onnx --input-minimum 0,-1.5 --input-maximum 4254,1.5
  concilium-owner check model.onnx --inputs test-rows.npy --json report.json
  concilium-owner check two-heads.onnx --output species

Exit code 0: the model may be shared. 2: it is refused, the reason is on standard error.";

const AFTER_SHARE_HELP: &str = "\
All models are imported and checked before the first one is sent. Repeating the command is safe: a
model that is ready is left alone unless --replace is given, and what an interrupted upload has left
gives way. Before a model votes the three servers evaluate it once together, on rows that everybody
knows: its self-test.

Examples:
  concilium-owner share model.onnx --task digits --dry-run
  concilium-owner share model.onnx --task digits --name winter-2026
  concilium-owner share model.onnx --task digits --budget-rho 0.5
  concilium-owner share retrained.onnx --task digits --name winter-2026 --replace
  concilium-owner share winter-2027.onnx --task digits --retrained-on-new-data";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use concilium_client_library::terminal::EXIT_CODES;

    use super::*;

    fn parse(line: &[&str]) -> Result<Command, i32> {
        Arguments::try_parse_from(["concilium-owner"].iter().chain(line))
            .map(|arguments| arguments.command)
            .map_err(|error| error.exit_code())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        assert!(AFTER_HELP.ends_with(EXIT_CODES));
    }

    #[test]
    fn ranges_are_read() {
        let line = ["check", "m.onnx", "--input-minimum", "-1.5,0", "--input-maximum", "1e3"];
        let Ok(Command::Check(check)) = parse(&line) else { panic!("another command") };
        assert_eq!((check.input_minimum, check.input_maximum), (vec![-1.5, 0.0], vec![1e3]));
        assert_eq!((check.rows.get(), check.seed), (16, None));
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            &["check", "m.onnx", "--input-minimum", "0"][..],
            &["check", "m.onnx", "--task-file", "t.toml"],
            &["check", "m.onnx", "--task", "t", "--input-minimum", "0", "--input-maximum", "1"],
            &["check", "m.onnx", "--task", "t", "--rows", "0"],
            &["check", "m.onnx", "--task", "t", "--ring-bits", "32"],
            &["check", "m.onnx", "--ring-bits", "48"],
            &["share", "--task", "t"],
            &["share", "m.onnx"],
            &["withdraw", "m"],
            &[],
        ] {
            assert_eq!(parse(line).err(), Some(2), "{line:?}");
        }
    }
}
