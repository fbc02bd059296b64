//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use concilium_privacy::{Delta, NanoRho, NoiseScale};
use concilium_rpc::identity::Role;

/// Read a server's privacy budget and state, find faults, set what it logs, and issue certificates.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Addresses of the servers and the files of this operator's certificate, in TOML. Not read by
    /// `certs`.
    #[arg(
        long,
        global = true,
        env = "CONCILIUM_CONFIG",
        default_value = "operator.toml",
        value_name = "FILE"
    )]
    pub config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// What was spent of each task's budget, and what is left; says when the servers disagree.
    Budget(BudgetArguments),
    /// The guarantee of each task in one sentence, and its terms.
    Explain {
        /// Only this task.
        #[arg(long, value_name = "TASK")]
        task: Option<String>,
        /// The tasks of this file instead of the servers'.
        #[arg(long, value_name = "FILE")]
        task_file: Option<PathBuf>,
    },
    /// Measure what a task's releases lose on two toy ensembles, against what is charged. Charges nothing.
    #[command(after_help = AFTER_AUDIT_HELP)]
    Audit(AuditArguments),
    /// Version, connections, models, waiting requests and certificate of each server.
    Status {
        /// Only this server, 0, 1 or 2; all three otherwise.
        #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u8).range(0..3))]
        server: Option<u8>,
    },
    /// Which versions of whose models gave an answer, by the model set digest of its receipt.
    #[command(after_help = AFTER_MODEL_SET_HELP)]
    ModelSet {
        /// The digest, or its first 16 digits or more, in hexadecimal.
        #[arg(value_name = "DIGEST", value_parser = parse_digest)]
        digest: Digest,
        /// Only this server, 0, 1 or 2; all three otherwise.
        #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u8).range(0..3))]
        server: Option<u8>,
    },
    /// Set what the servers log, or show it; until a restart unless `--for` says how long.
    #[command(after_help = AFTER_LOG_FILTER_HELP)]
    LogFilter(LogFilterArguments),
    /// Find out what is wrong between this host and the three servers, and what to do about it.
    #[command(after_help = AFTER_DOCTOR_HELP)]
    Doctor {
        /// Compare the servers' tasks with this task file.
        #[arg(long, value_name = "FILE")]
        tasks: Option<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make an authority; issue, show and renew certificates.
    Certs {
        /// What to do.
        #[command(subcommand)]
        command: CertsCommand,
    },
}

/// The first bytes of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest(pub Vec<u8>);

fn parse_digest(text: &str) -> Result<Digest, String> {
    let bytes = hex::decode(text).map_err(|error| error.to_string())?;
    if !(8..=32).contains(&bytes.len()) {
        return Err(format!("{} digits; 16 to 64 are a digest or its beginning", text.len()));
    }
    Ok(Digest(bytes))
}

/// Arguments of `budget`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BudgetArguments {
    /// What to do; without it, show the budgets.
    #[command(subcommand)]
    pub command: Option<BudgetCommand>,
    /// Only this task.
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
    /// Only this server, 0, 1 or 2; all three otherwise.
    #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u8).range(0..3))]
    pub server: Option<u8>,
}

/// The subcommands of `budget`.
#[derive(Clone, Debug, Subcommand)]
pub enum BudgetCommand {
    /// How many answers a budget pays for, and how often they are right. Charges nothing.
    #[command(after_help = AFTER_WHAT_IF_HELP)]
    WhatIf(WhatIfArguments),
    /// Let a task go on that the servers have stopped because their ledgers do not belong together.
    ///
    /// The smaller totals have been raised to the larger ones already. What is accepted is that a ledger
    /// went back in time: find out which, and why, before. Your name and the reason are kept in the ledgers.
    Resume(ResumeArguments),
    /// Write the whole ledger of a server to a file, with the server's signed statement.
    Export {
        /// The server, 0, 1 or 2.
        #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u8).range(0..3))]
        server: u8,
        /// The file, which must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Check exported ledgers and compare them; without files, the three servers' as they are now.
    Verify {
        /// Files that `budget export` wrote, of one server or several, also older ones.
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The authorities whose servers are believed, in PEM; those of the configuration without files.
        #[arg(long, value_name = "FILE", default_value = "certificates/ca.pem")]
        ca: PathBuf,
    },
}

/// Arguments of `budget what-if`.
#[derive(Clone, Debug, Args)]
pub struct WhatIfArguments {
    /// Start from the policy of this task, as the servers have it.
    #[arg(long, value_name = "TASK")]
    pub task: String,
    /// As this file has it; no server is asked then.
    #[arg(long, value_name = "FILE", requires = "models")]
    pub task_file: Option<PathBuf>,
    /// Models that vote; without it those that are ready.
    #[arg(long, value_name = "NUMBER")]
    pub models: Option<u32>,
    /// The part of the models that agree, in a clear vote.
    #[arg(long, value_name = "PART", default_value_t = concilium_privacy::utility::CLEAR_SHARE)]
    pub share: f64,
    /// With discrete Gaussian noise of this sigma.
    #[arg(long, value_name = "VOTES", conflicts_with = "scale")]
    pub sigma: Option<NoiseScale>,
    /// With discrete Laplace noise of this scale.
    #[arg(long, value_name = "VOTES")]
    pub scale: Option<NoiseScale>,
    /// With the sigma that pays for so many rows.
    #[arg(long, value_name = "ROWS", conflicts_with_all = ["sigma", "scale"])]
    pub rows: Option<u64>,
    /// With this budget.
    #[arg(long, value_name = "RHO", conflicts_with = "epsilon")]
    pub rho: Option<NanoRho>,
    /// With the budget that belongs to this epsilon.
    #[arg(long, value_name = "EPSILON")]
    pub epsilon: Option<f64>,
    /// At this delta.
    #[arg(long, value_name = "DELTA")]
    pub delta: Option<Delta>,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `audit`.
#[derive(Clone, Debug, Args)]
pub struct AuditArguments {
    /// Audit the policy of this task, as the servers have it.
    #[arg(long, value_name = "TASK")]
    pub task: String,
    /// As this file has it; no server is asked then.
    #[arg(long, value_name = "FILE")]
    pub task_file: Option<PathBuf>,
    /// Releases (rows) of each of the two ensembles, for each part of a release that is paid for.
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000)]
    pub releases: usize,
    /// The corrupted server, whose own noise is known: 0, 1, 2, or each in turn.
    #[arg(long, value_name = "SERVER", default_value = "all")]
    pub corrupted: Corrupted,
    /// Compare at this delta; otherwise at one that so few releases can show, which follows from the price.
    #[arg(long, value_name = "DELTA")]
    pub delta: Option<Delta>,
    /// Write what was found as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Servers that an audit takes as corrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Corrupted {
    /// Server 0.
    #[value(name = "0")]
    Zero,
    /// Server 1.
    #[value(name = "1")]
    One,
    /// Server 2.
    #[value(name = "2")]
    Two,
    /// Each in turn.
    All,
}

impl Corrupted {
    /// The one server, or none for all.
    pub fn server(self) -> Option<u8> {
        match self {
            Self::Zero => Some(0),
            Self::One => Some(1),
            Self::Two => Some(2),
            Self::All => None,
        }
    }
}

/// Arguments of `budget resume`.
#[derive(Clone, Debug, Args)]
pub struct ResumeArguments {
    /// The task.
    #[arg(long, value_name = "TASK")]
    pub task: String,
    /// Why it may go on: what was found and done.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Only this server, 0, 1 or 2; all three otherwise.
    #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u8).range(0..3))]
    pub server: Option<u8>,
}

/// Arguments of `log-filter`.
#[derive(Clone, Debug, Args)]
pub struct LogFilterArguments {
    /// Only this server, 0, 1 or 2; all three otherwise.
    #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u8).range(0..3))]
    pub server: Option<u8>,
    /// Go back after this time, such as 90s, 10m, 2h or 1d; at most 7d.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Show the filter and change nothing.
    #[arg(long, conflicts_with_all = ["duration", "filter"])]
    pub show: bool,
    /// Levels off, error, warn, info, debug or trace, and TARGET=LEVEL for modules, separated by commas.
    #[arg(value_name = "FILTER", required_unless_present = "show")]
    pub filter: Option<String>,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "write a whole number and s, m, h or d, such as 10m";
    let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(FORM.to_owned()),
    };
    let count: u64 = text[..text.len() - unit.len()].parse().map_err(|_| FORM.to_owned())?;
    match count.checked_mul(seconds) {
        Some(seconds @ 1..=604_800) => Ok(Duration::from_secs(seconds)),
        _ => Err("1s to 7d are allowed".to_owned()),
    }
}

/// The subcommands of `certs`.
#[derive(Clone, Debug, Subcommand)]
pub enum CertsCommand {
    /// Make a new authority: ca.pem, which everybody gets, and ca.key, which nobody else may see.
    #[command(after_help = AFTER_INIT_HELP)]
    Init {
        /// Folder of the authority; made if need be.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Issue a certificate and its key to a server, owner, client or operator.
    #[command(after_help = AFTER_ISSUE_HELP)]
    Issue(IssueArguments),
    /// Show whose certificates these are, who signed them, how long they last, and what is wrong.
    Show {
        /// PEM files, or folders whose .pem files are shown.
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Replace a certificate and its key by new ones of the same holder and hosts.
    #[command(after_help = AFTER_RENEW_HELP)]
    Renew(RenewArguments),
}

/// Arguments of `certs renew`.
#[derive(Clone, Debug, Args)]
pub struct RenewArguments {
    /// Folder of the authority, as `certs init` made it.
    #[arg(long, value_name = "DIR")]
    pub ca: PathBuf,
    /// The certificate to renew.
    #[arg(value_name = "FILE")]
    pub certificate: PathBuf,
    /// Its key; beside the certificate with the ending .key otherwise.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The authorities that the holder trusts; ca.pem beside the certificate otherwise.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// Refuse the certificate of another role.
    #[arg(long, value_name = "ROLE")]
    pub role: Option<Role>,
    /// Refuse the certificate of another name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Validity in days, 1 to 3650.
    #[arg(long, value_name = "DAYS", default_value = "365")]
    pub days: u32,
    /// Keep the key instead of making a new one.
    #[arg(long)]
    pub keep_key: bool,
    /// Write ca.pem, the certificate and the key to this folder instead, and leave the old ones.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Arguments of `certs issue`.
#[derive(Clone, Debug, Args)]
pub struct IssueArguments {
    /// Folder of the authority, as `certs init` made it.
    #[arg(long, value_name = "DIR")]
    pub ca: PathBuf,
    /// server, owner, client or operator.
    #[arg(long, value_name = "ROLE")]
    pub role: Role,
    /// Name, of the characters a-z, 0-9 and -; servers are called server-0, server-1 and server-2.
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Further DNS name of a server; may be repeated.
    #[arg(long, value_name = "HOST")]
    pub dns: Vec<String>,
    /// IP address of a server; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Vec<std::net::IpAddr>,
    /// Validity in days, 1 to 3650.
    #[arg(long, value_name = "DAYS", default_value = "365")]
    pub days: u32,
    /// Folder for ca.pem, the certificate and the key; made if need be.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

const AFTER_HELP: &str = "\
Examples:
  concilium-operator certs init authority
  concilium-operator certs issue --ca authority --role operator --name olga --out certificates
  concilium-operator certs show certificates
  concilium-operator certs renew --ca authority certificates/operator-olga.pem
  concilium-operator doctor
  concilium-operator budget
  concilium-operator budget --server 0 --task digits
  concilium-operator budget resume --task digits --reason 'server 2 lost its disk'
  concilium-operator budget what-if --task digits --sigma 10
  concilium-operator explain
  concilium-operator audit --task digits
  concilium-operator budget export --server 0 --out server-0.jsonl
  concilium-operator budget verify server-0.jsonl server-1.jsonl server-2.jsonl --ca certificates/ca.pem
  concilium-operator status
  concilium-operator log-filter --for 10m info,concilium_server=debug

Configuration (operator.toml), with paths relative to the file; each key can be overridden by a
variable such as CONCILIUM_TLS__KEY:
  servers = [\"host0:7400\", \"host1:7400\", \"host2:7400\"]
  connect_timeout_ms = 10000
  request_timeout_ms = 120000
  [tls]
  ca = \"certificates/ca.pem\"
  certificate = \"certificates/operator-olga.pem\"
  key = \"certificates/operator-olga.key\"

Results go to standard output, everything else to standard error. `audit` has an exit code more.

Exit codes:
  0  done
  1  a file could not be written, or another local fault
  2  the command line, configuration or input is refused
  3  the servers refuse (budget, identity, policy) or disagree
  4  a server is unavailable; the same command may succeed later";

const AFTER_WHAT_IF_HELP: &str = "\
The accuracy is the chance that the released label is the one with the most votes, when the given part
of the models agrees and the others are spread evenly, with the noise of all three servers. Noise that
leaves fewer than 9 of 10 such labels right is useless for so many models, and so is a budget that pays
for no row: that is said, with exit code 3.

Examples:
  concilium-operator budget what-if --task digits
  concilium-operator budget what-if --task digits --sigma 20 --models 250 --epsilon 8
  concilium-operator budget what-if --task digits --task-file tasks.toml --models 50 --rows 1000";

const AFTER_AUDIT_HELP: &str = "\
Runs three servers in this process: two ensembles of toy models that differ in one privacy unit are
shared, evaluated and released by the code of the servers, with the noise that servers draw and the
task's release, noise, classes, privacy unit and models per owner. Neither the task's models nor its
inputs are needed, and no budget is touched. The threshold of confident labels is moved to where the
few toy models are, as only its distance from the counts matters.

A corrupted server knows its own noise. What is left is compared: an event is chosen on a quarter of the
releases and counted on the others, in both ensembles. `lower bound` is the epsilon that these counts
show at least (Clopper-Pearson), `claim` the epsilon at the same delta that belongs to what is charged,
`exact` the true epsilon of the noise where it is known. A lower bound above its claim refutes the
release; a sound one is refuted in one audit of a million at most.

An audit can refute and never prove. It examines the noise and the protocols of this program on this
host, and neither what runs on the servers' hosts nor whether an owner's parts of its data are disjoint.
TOO FEW says that no outcome would have refuted: noise that is large, or many votes of one unit, take
more releases than are feasible. A row of 2 classes takes about 0.1 ms, and more classes take longer.

Exit codes:
  0  no lower bound is above its claim
  5  a release is refuted
  others as for all commands, see concilium-operator --help

Examples:
  concilium-operator audit --task digits
  concilium-operator audit --task digits --releases 1000000 --corrupted 0 --json audit.json
  concilium-operator audit --task digits --task-file tasks.toml";

const AFTER_MODEL_SET_HELP: &str = "\
Each server keeps every set of which it has released an answer, also when the models are long gone. The
digest is computed again from what a server lists, so no server can list another set for it.

Examples:
  concilium-operator model-set 7c9e6679f2a04bd1
  concilium-operator model-set 7c9e6679f2a04bd1 --server 1

Exit code 2: no server has released an answer of such a set.";

const AFTER_LOG_FILTER_HELP: &str = "\
A filter is what RUST_LOG takes. Events of libraries outside of Concilium are logged up to info at most,
whatever the filter says. Inputs, models, shares, noise and keys are never logged.

Examples:
  concilium-operator log-filter --show
  concilium-operator log-filter --server 1 --for 10m debug
  concilium-operator log-filter info,concilium_server::run=trace
  concilium-operator log-filter 'info,concilium_server[batch{task=digits}]=trace'";

const AFTER_DOCTOR_HELP: &str = "\
Examines, for each server and up to its first fault: its name, its port, TLS on both sides, that the
server is the one that belongs at the address, and that it serves this certificate's holder. Then
compares certificates' ends, clocks, versions, the links between the servers, their tasks key by key,
and their ledgers. Every fault comes with what to do about it. With the certificate of a client or an
owner, what only operators may read is left out.

Clocks that differ by more than 5 seconds are a warning, by more than 5 minutes a fault.

Exit code 0 without a fault; otherwise 2 if this side's files are at fault, 4 if a server or a link
between servers is down and nothing else is wrong, 3 for every other fault.

Examples:
  concilium-operator doctor
  concilium-operator doctor --config client.toml --tasks tasks.toml
  concilium-operator doctor --json";

const AFTER_INIT_HELP: &str = "\
Whoever has ca.key can pass for all three servers, and then learns models and inputs. Make it on a
machine without a network, keep it and a copy on storage that is locked away, and bring it only to
issue or renew certificates. ca.pem is no secret. Both are valid for ten years.";

const AFTER_RENEW_HELP: &str = "\
Running servers notice the new files within seconds and use them for new connections; nothing is
interrupted. Clients, owners and operators read their files when they start. The role, the name and
the hosts stay as they are: to change them, issue another certificate.

To change the authority, put the old and the new ca.pem, one after the other, into everybody's ca.pem;
renew every certificate with the new authority; take the old one out of everybody's ca.pem.

Examples:
  concilium-operator certs renew --ca authority certificates/server-0.pem
  concilium-operator certs renew --ca authority certificates/client-alice.pem --days 90 --out for-alice";

const AFTER_ISSUE_HELP: &str = "\
Files: ca.pem, and server-0.pem and server-0.key for a server or client-alice.pem and
client-alice.key for the others. Keys are readable by the current user alone. Names must also be
listed in `identities` of each server's configuration.

Examples:
  concilium-operator certs issue --ca authority --role server --name server-0 --dns host0.example.org --out server-0
  concilium-operator certs issue --ca authority --role owner --name ward-7 --days 90 --out ward-7
  concilium-operator certs issue --ca authority --role client --name alice --out alice";

#[cfg(test)]
mod tests;
