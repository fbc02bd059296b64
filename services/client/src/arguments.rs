//! The command line.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use concilium_client_library::inputs::Source;

use crate::selection::RowRange;

/// Ask many owners' networks for one noisy, differentially private answer.
///
/// The input is split into secret shares on this machine; none of the three servers sees it, nor the
/// answer, which is put together here.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Addresses of the servers and the files of this client's certificate, in TOML.
    #[arg(long, global = true, env = "CONCILIUM_CONFIG", default_value = "client.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Predict the rows of a file.
    Predict(Box<PredictArguments>),
    /// List the tasks that the servers serve, with their prices and what is left of the budget.
    Tasks,
    /// What you have spent, and all that can refuse a request: caps, the spending window with the time at
    /// which the next row fits, stops.
    Budget {
        /// Only this task.
        #[arg(long, value_name = "TASK")]
        task: Option<String>,
    },
    /// Check the servers' signed receipts in a file that `predict --json` wrote; needs no server.
    Receipt {
        /// What to do.
        #[command(subcommand)]
        command: ReceiptCommand,
    },
}

/// The subcommands of `receipt`.
#[derive(Clone, Debug, Subcommand)]
pub enum ReceiptCommand {
    /// Check that three servers signed each receipt, say the same, and say what the file says.
    Verify {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The authorities whose servers are believed, in PEM.
        #[arg(long, value_name = "FILE", default_value = "certificates/ca.pem")]
        ca: PathBuf,
    },
}

/// Arguments of `predict`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_PREDICT_HELP)]
pub struct PredictArguments {
    /// Name of the task; `concilium-client tasks` lists them.
    #[arg(long, value_name = "TASK")]
    pub task: String,
    /// Rows to predict: FILE.npy, FILE.npz:member or numeric FILE.csv. The first axis counts the rows.
    #[arg(long, value_name = "FILE", value_parser = Source::parse)]
    pub input: Source,
    /// True class indices, one for each row of the input file, to print the accuracy. They are not
    /// sent.
    #[arg(long, value_name = "FILE", value_parser = Source::parse)]
    pub labels: Option<Source>,
    /// Predict only these rows of the file, counted from 0, the last one not included: 0..10, 5.. or ..3.
    #[arg(long, value_name = "A..B", value_parser = RowRange::parse)]
    pub rows: Option<RowRange>,
    /// Write answers, receipts and timings to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Most rows of one request. The task sets a limit, which is used otherwise.
    #[arg(long, value_name = "N")]
    pub batch: Option<NonZeroUsize>,
    /// Make requests that the same command can repeat after a crash: ids and shares are derived from the
    /// key in this file, 64 hexadecimal digits, and from the rows. A missing file is made. Keep it as
    /// secret as the rows.
    #[arg(long, value_name = "FILE")]
    pub repeat_key: Option<PathBuf>,
    /// Print the table only: no progress bar, no receipt.
    #[arg(long)]
    pub quiet: bool,
}

const AFTER_HELP: &str = "\
Examples:
  concilium-client tasks
  concilium-client budget --task digits
  concilium-client predict --task digits --input test_inputs.npy --rows 0..20
  concilium-client predict --task digits --input test.npz:x --labels test.npz:y --json answers.json
  concilium-client receipt verify answers.json --ca certificates/ca.pem

Configuration (client.toml), with paths relative to the file; each key can be overridden by a
variable such as CONCILIUM_TLS__KEY:
  servers = [\"host0:7400\", \"host1:7400\", \"host2:7400\"]
  connect_timeout_ms = 10000
  request_timeout_ms = 120000
  [tls]
  ca = \"certificates/ca.pem\"
  certificate = \"certificates/client-alice.pem\"
  key = \"certificates/client-alice.key\"

Results go to standard output, everything else to standard error. RUST_LOG=info shows repeats.

Exit codes:
  0  done
  1  a file could not be written, or another local fault
  2  the command line, configuration or input is refused
  3  the servers refuse (budget, identity, policy) or disagree
  4  a server is unavailable; the same command may succeed later";

const AFTER_PREDICT_HELP: &str = "\
Every row is paid for from the privacy budget; the receipt shows what was charged and what is left.
A row that lies outside the task's ranges is refused before anything is sent or charged. A lost
connection is repeated under the same request id, which is charged once only.

With --repeat-key this holds beyond the life of the process: the same rows under the same key, --rows
and --batch are the same requests, so the command can be run again and pays only for what was not
answered before. What was answered comes back with the same noise. For a fresh answer to the same
rows, which is charged, leave the option out or name another file.

Examples:
  concilium-client predict --task digits --input test_inputs.npy --rows ..5
  concilium-client predict --task heart --input patients.csv --labels outcome.csv --batch 16
  concilium-client predict --task heart --input patients.csv --repeat-key repeat.key";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use concilium_client_library::terminal::EXIT_CODES;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        // One text for the programs, one list of codes.
        assert!(AFTER_HELP.ends_with(EXIT_CODES));
    }

    #[test]
    fn arguments_are_read() {
        let arguments = Arguments::try_parse_from([
            "concilium-client",
            "predict",
            "--task",
            "t",
            "--input",
            "x.npz:a",
            "--labels",
            "y.csv",
            "--rows",
            "2..",
            "--batch",
            "7",
            "--repeat-key",
            "r.key",
            "--config",
            "c.toml",
        ])
        .unwrap();
        assert_eq!(arguments.config, PathBuf::from("c.toml"));
        let Command::Predict(predict) = arguments.command else { panic!("another command") };
        assert_eq!((predict.task.as_str(), predict.batch), ("t", NonZeroUsize::new(7)));
        assert_eq!(predict.input.to_string(), "x.npz:a");
        assert_eq!(predict.repeat_key, Some(PathBuf::from("r.key")));
        for wrong in [
            &["--task", "t", "--input", "x.txt"][..],
            &["--task", "t", "--input", "x.npy", "--rows", "5"],
            &["--task", "t", "--input", "x.npy", "--batch", "0"],
            &["--task", "t"],
        ] {
            let line = ["concilium-client", "predict"].iter().chain(wrong);
            assert_eq!(Arguments::try_parse_from(line).unwrap_err().exit_code(), 2);
        }
    }
}
