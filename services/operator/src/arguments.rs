//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use concilium_rpc::identity::Role;

/// Read a server's privacy budget and state, and issue certificates.
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
    Budget {
        /// Only this task.
        #[arg(long, value_name = "TASK")]
        task: Option<String>,
        /// Only this server, 0, 1 or 2; all three otherwise.
        #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u8).range(0..3))]
        server: Option<u8>,
    },
    /// Version, connections, models, waiting requests and certificate of each server.
    Status {
        /// Only this server, 0, 1 or 2; all three otherwise.
        #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u8).range(0..3))]
        server: Option<u8>,
    },
    /// Make an authority and issue certificates.
    Certs {
        /// What to do.
        #[command(subcommand)]
        command: CertsCommand,
    },
}

/// The subcommands of `certs`.
#[derive(Clone, Debug, Subcommand)]
pub enum CertsCommand {
    /// Make a new authority: ca.pem, which everybody gets, and ca.key, which nobody else may see.
    Init {
        /// Folder of the authority; made if need be.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Issue a certificate and its key to a server, owner, client or operator.
    #[command(after_help = AFTER_ISSUE_HELP)]
    Issue(IssueArguments),
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
  concilium-operator budget
  concilium-operator budget --server 0 --task digits
  concilium-operator status

Configuration (operator.toml), with paths relative to the file; each key can be overridden by a
variable such as CONCILIUM_TLS__KEY:
  servers = [\"host0:7400\", \"host1:7400\", \"host2:7400\"]
  connect_timeout_ms = 10000
  request_timeout_ms = 120000
  [tls]
  ca = \"certificates/ca.pem\"
  certificate = \"certificates/operator-olga.pem\"
  key = \"certificates/operator-olga.key\"

Results go to standard output, everything else to standard error.

Exit codes:
  0  done
  1  a file could not be written, or another local fault
  2  the command line, configuration or input is refused
  3  the servers refuse (budget, identity, policy) or disagree
  4  a server is unavailable; the same command may succeed later";

const AFTER_ISSUE_HELP: &str = "\
Files: ca.pem, and server-0.pem and server-0.key for a server or client-alice.pem and
client-alice.key for the others. Keys are readable by the current user alone. Names must also be
listed in `identities` of each server's configuration.

Examples:
  concilium-operator certs issue --ca authority --role server --name server-0 --dns host0.example.org --out server-0
  concilium-operator certs issue --ca authority --role owner --name ward-7 --days 90 --out ward-7
  concilium-operator certs issue --ca authority --role client --name alice --out alice";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use concilium_client_library::terminal::EXIT_CODES;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        assert!(AFTER_HELP.ends_with(EXIT_CODES));
    }

    #[test]
    fn arguments_are_read() {
        let parse = |line: &[&str]| {
            Arguments::try_parse_from(["concilium-operator"].iter().chain(line))
                .map(|arguments| arguments.command)
                .map_err(|error| error.exit_code())
        };
        let line = [
            "certs", "issue", "--ca", "a", "--role", "server", "--name", "server-1", "--dns", "x", "--ip",
            "::1",
        ];
        let complete: Vec<&str> = line.into_iter().chain(["--out", "o"]).collect();
        let Ok(Command::Certs { command: CertsCommand::Issue(issue) }) = parse(&complete) else {
            panic!("another command")
        };
        assert_eq!((issue.role, issue.days, issue.ip.len()), (Role::Server, 365, 1));
        let Ok(Command::Budget { server: Some(2), task: None }) = parse(&["budget", "--server", "2"]) else {
            panic!("another command")
        };
        for line in [
            &line[..],
            &["budget", "--server", "3"],
            &["certs", "issue", "--ca", "a", "--role", "king", "--name", "x", "--out", "o"],
            &["certs", "init"],
            &[],
        ] {
            assert_eq!(parse(line).err(), Some(2), "{line:?}");
        }
    }
}
