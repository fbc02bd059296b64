//! What was found, and how it is printed.

use std::{fmt, io::Write};

use concilium_client_library::terminal::{Failure, FailureClass, Output};
use serde::Serialize;

/// What is examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Check {
    /// This side's certificate, key and authority.
    OwnFiles,
    /// The task file that the servers are compared with.
    TaskFile,
    /// The server's address is `host:port`.
    Address,
    /// The server's host has an IP address.
    Name,
    /// Something answers at the server's port, and it is the port for clients.
    Port,
    /// TLS comes about: both sides trust each other's certificate.
    Tls,
    /// The server at the address is the one that belongs there.
    Identity,
    /// The server serves the holder of this side's certificate.
    Role,
    /// The server's certificate lasts.
    Expiry,
    /// The server uses the certificate that is in its files.
    Reload,
    /// The clocks of the servers and of this host agree.
    Clock,
    /// All servers run the same version and speak the same protocol.
    Version,
    /// The servers are connected to each other.
    Peers,
    /// The servers have the same tasks.
    Policy,
    /// Ledgers agree.
    Ledger,
    /// How long a call takes.
    RoundTrip,
}

impl Check {
    /// What kind of failure a fault is.
    pub fn class(self) -> FailureClass {
        match self {
            Self::OwnFiles | Self::TaskFile | Self::Address => FailureClass::Input,
            Self::Name | Self::Port | Self::Peers => FailureClass::Unavailable,
            _ => FailureClass::Refused,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::OwnFiles => "own-files",
            Self::TaskFile => "task-file",
            Self::Address => "address",
            Self::Name => "name",
            Self::Port => "port",
            Self::Tls => "tls",
            Self::Identity => "identity",
            Self::Role => "role",
            Self::Expiry => "expiry",
            Self::Reload => "reload",
            Self::Clock => "clock",
            Self::Version => "version",
            Self::Peers => "peers",
            Self::Policy => "policy",
            Self::Ledger => "ledger",
            Self::RoundTrip => "round-trip",
        })
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not for long, or could not be examined.
    Warning,
    /// Does not work.
    Fault,
}

/// One thing that was examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub check: Check,
    /// Index of the server, if it is about one.
    pub server: Option<u8>,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; empty if there is nothing.
    pub remedy: String,
}

/// Everything that was found, in the order in which it is worth reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// What was found.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    pub(super) fn extend(&mut self, other: Report) {
        self.findings.extend(other.findings);
    }

    pub(super) fn ok(&mut self, check: Check, server: Option<u8>, found: impl Into<String>) {
        self.add(Level::Ok, check, server, found, "");
    }

    pub(super) fn warning(
        &mut self,
        check: Check,
        server: Option<u8>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Level::Warning, check, server, found, remedy);
    }

    pub(super) fn fault(
        &mut self,
        check: Check,
        server: Option<u8>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Level::Fault, check, server, found, remedy);
    }

    fn add(
        &mut self,
        level: Level,
        check: Check,
        server: Option<u8>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (found, remedy) = (found.into(), remedy.into());
        self.findings.push(Finding { check, server, level, found, remedy });
    }

    /// One line for each finding, and one below for what to do.
    pub(super) fn print(&self, output: &mut Output<impl Write>) -> Result<(), Failure> {
        for Finding { check, server, level, found, remedy } in &self.findings {
            let level = match level {
                Level::Ok => "OK",
                Level::Warning => "WARNING",
                Level::Fault => "FAULT",
            };
            let place = server.map_or_else(|| "all".to_owned(), |server| format!("server {server}"));
            // One line, whatever a server sends.
            let found = found.split_whitespace().collect::<Vec<_>>().join(" ");
            output.line(format_args!("{level:<7}  {place:<8}  {check:<10}  {found}"))?;
            if !remedy.is_empty() {
                output.line(format_args!("{:<7}  {:<8}  {:<10}  -> {remedy}", "", "", ""))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_aligned_and_name_the_remedy() {
        let mut report = Report::default();
        report.ok(Check::RoundTrip, Some(1), "3 ms");
        report.fault(Check::Clock, None, "an hour\nbehind", "set it");
        let mut bytes = Vec::new();
        report.print(&mut Output::new(&mut bytes)).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let expected = [
            "OK       server 1  round-trip  3 ms",
            "FAULT    all       clock       an hour behind",
            "                               -> set it",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }
}
