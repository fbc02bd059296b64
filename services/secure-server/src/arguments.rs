//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// The lines of `--help` about exit codes, in line with those of the other programs.
const AFTER_HELP: &str = "\
Examples:
  concilium-server --config server-0.toml
  concilium-server config check --config server-0.toml
  CONCILIUM_LIMITS__BATCH_ROWS=64 concilium-server config print
  concilium-server health --config server-0.toml

Configuration: server.toml and the task file that it names; `concilium-server config schema` lists
every key with type, limits, default and meaning. Every key of server.toml can be overridden:
CONCILIUM_LIMITS__BATCH_ROWS=64 sets limits.batch_rows. RUST_LOG sets what is logged and wins over
observability.log_filter, for instance RUST_LOG=info,concilium_server=debug;
`concilium-operator log-filter` changes it while the server runs.

A termination signal or Ctrl-C stops the server: a batch under way is finished, requests that wait
are told to come back.

Exit codes:
  0  stopped as asked; config check: no error; health: serving
  1  a local fault: data directory that can't be written to, damaged files, a fault while running;
     health: not serving
  2  the command line, configuration, task file or a certificate is refused; a restart does not help
  4  a port is in use; the same command may succeed later";

/// Run one of the three secure servers until it gets Ctrl-C or a termination signal.
///
/// Three servers, run by parties that do not collude, evaluate secret-shared models on
/// secret-shared inputs. Each keeps its own privacy budget. The certificate's name, server-0,
/// server-1 or server-2, says which of the three this one is. Everything that is wrong with the
/// configuration is reported before anything starts.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The server's configuration file.
    #[arg(long, global = true, env = "CONCILIUM_CONFIG", default_value = "server.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// Start a new ledger although this server holds models, because its ledger is lost for good. The other
    /// servers notice, their totals are taken over, and all tasks stop until the operators resume them.
    #[arg(long)]
    pub new_ledger: bool,
    /// What to do; without it, `run`.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server, as without a command.
    Run,
    /// Check, show and explain the configuration.
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Tell by the exit code whether the server of this configuration serves: 0 when it is connected to
    /// both other servers, 1 with one line why otherwise. For containers and supervisors.
    ///
    /// It connects to the port `listen` of this host with the server's own certificate.
    Health,
}

/// The subcommands of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Report everything that is wrong with both files and with what they name: keys and values,
    /// certificates, data directory and ports. Starts nothing.
    Check {
        /// The server is running, so its ports are in use: do not try them.
        #[arg(long)]
        running: bool,
        /// Write one JSON object: `can_start`, `exit_code` and `problems`.
        #[arg(long)]
        json: bool,
    },
    /// Write the configuration in effect as TOML, with where each value comes from: a line of the file,
    /// a variable or the default.
    Print {
        /// Write the tasks instead of the server's own keys.
        #[arg(long)]
        tasks: bool,
    },
    /// List every key of both files with type, unit, limits, default and meaning.
    Schema {
        /// Write JSON.
        #[arg(long)]
        json: bool,
    },
}
