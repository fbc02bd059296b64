//! `doctor`: what is wrong between this host and the three servers, and what to do about it.
//!
//! Each server is examined in the order in which a connection comes about, up to the first fault, and
//! then all are compared with each other and with this host.

mod finding;
mod judge;
mod policy;
mod server;

use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use concilium_client_library::{
    ConnectionConfig,
    terminal::{Failure, FailureClass, Output},
};
use concilium_privacy::Clock;
use concilium_rpc::{
    identity::SERVERS,
    inspection::{Validity, utc},
    tls::TlsMaterial,
};

pub use finding::{Check, Finding, Level, Report};

/// Longest time for one server; a host that drops packets must not hold up the rest of the report.
const PATIENCE: Duration = Duration::from_secs(60);

/// Examines this side's files and then the three servers. `tasks` is a task file to compare with what
/// the servers say; `clock` is what this host believes the time to be.
pub async fn examine(config: &ConnectionConfig, tasks: Option<&Path>, clock: &dyn Clock) -> Report {
    let mut report = Report::default();
    let Some(tls) = own_files(config, clock, &mut report) else { return report };
    let expected = policy::expected(tasks, &mut report);
    let examine = |index: u8| {
        let deadline = Instant::now() + PATIENCE;
        server::examine(index, config, &tls, clock, deadline)
    };
    let (first, second, third) = tokio::join!(examine(0), examine(1), examine(2));
    let mut seen = Vec::with_capacity(SERVERS);
    for (findings, server) in [first, second, third] {
        report.extend(findings);
        seen.extend(server);
    }
    judge::compare(&seen, &mut report);
    policy::compare(&seen, expected.as_deref(), &mut report);
    report
}

/// Checks the files of this side; without them nothing can be examined.
fn own_files(config: &ConnectionConfig, clock: &dyn Clock, report: &mut Report) -> Option<TlsMaterial> {
    let tls = match config.tls.load() {
        Ok(tls) => tls,
        Err(error) => {
            report.fault(
                Check::OwnFiles,
                None,
                error.to_string(),
                "look at the files with `concilium-operator certs show`; the keys tls.ca, tls.certificate and \
                 tls.key of the configuration name them",
            );
            return None;
        }
    };
    let (info, now) = (tls.info(), seconds(clock));
    let told = format!("{} of {}, until {}", info.serial, tls.identity(), utc(info.not_after));
    match info.validity_at(now) {
        Validity::Good { .. } => report.ok(Check::OwnFiles, None, format!("certificate {told}")),
        Validity::Ending { days } => report.warning(
            Check::OwnFiles,
            None,
            format!("certificate {told}, expires in {days} days"),
            format!("renew it: concilium-operator certs renew --ca AUTHORITY {}", certificate(config)),
        ),
        // The files were good by the machine's own clock a moment ago.
        Validity::Expired | Validity::NotYet => report.fault(
            Check::OwnFiles,
            None,
            format!("certificate {told}, is not valid at {}", utc(now)),
            format!("renew `{}`, or set this machine's clock", certificate(config)),
        ),
    }
    let authority = tls.authority();
    if !matches!(authority.validity_at(now), Validity::Good { .. }) {
        report.warning(
            Check::OwnFiles,
            None,
            format!("the authority {} ends at {}", authority.subject, utc(authority.not_after)),
            "replace the authority in three steps, see `concilium-operator certs renew --help`",
        );
    }
    Some(tls)
}

fn certificate(config: &ConnectionConfig) -> impl std::fmt::Display {
    config.tls.certificate.display()
}

/// The clock in seconds since 1970-01-01 UTC.
fn seconds(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.now_ms() / 1000).unwrap_or(i64::MAX)
}

/// Prints the report and fails if there is a fault in it.
///
/// # Errors
/// [`Failure`] of the class that the faults have: of the input for this side's files, unavailable if no
/// more is wrong than that a server is not reached, refused otherwise.
pub fn conclude(report: &Report, json: bool, output: &mut Output<impl Write>) -> Result<(), Failure> {
    if json {
        let text = serde_json::to_string_pretty(report.findings())
            .map_err(|error| Failure::new(FailureClass::Local, &error))?;
        output.line(text)?;
    } else {
        report.print(output)?;
    }
    let faults: Vec<_> = report.findings().iter().filter(|finding| finding.level == Level::Fault).collect();
    let Some(class) = faults.iter().map(|finding| finding.check.class()).max_by_key(|class| match class {
        FailureClass::Unavailable => 0,
        FailureClass::Refused | FailureClass::Refuted => 1,
        FailureClass::Local => 2,
        FailureClass::Input => 3,
    }) else {
        return Ok(());
    };
    let message = match faults.len() {
        1 => "1 fault; what to do is said above".to_owned(),
        count => format!("{count} faults; what to do is said above. Begin with the first"),
    };
    Err(Failure::message(class, message))
}
