//! An empirical audit of a task's release: what two ensembles that differ in one privacy unit show.

use std::{
    fs,
    io::{self, IsTerminal as _, Write},
    path::Path,
};

use concilium_audit::{Finding, Report, ServerNoise, Settings, Verdict};
use concilium_client_library::terminal::{Failure, FailureClass, Output};
use concilium_mpc::PartyIndex;
use concilium_privacy::TaskPolicy;
use indicatif::{ProgressBar, ProgressStyle};

use crate::arguments::AuditArguments;

/// Audits the policy with the noise that servers of this version draw, and prints what each view shows.
///
/// # Errors
/// [`Failure`] of the class [`FailureClass::Refuted`] when a lower bound is above its claim; of input when
/// the policy cannot be audited; and if the results cannot be written.
pub fn audit(
    policy: &TaskPolicy,
    arguments: &AuditArguments,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let server = || ServerNoise::of_server(policy).map_err(|error| Failure::new(FailureClass::Input, &error));
    audit_with(policy, arguments, [server()?, server()?, server()?], output)
}

/// As [`audit`], with other noise than a server's.
///
/// # Errors
/// As [`audit`].
pub fn audit_with(
    policy: &TaskPolicy,
    arguments: &AuditArguments,
    servers: [ServerNoise; 3],
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let settings = Settings {
        releases: arguments.releases,
        corrupted: match arguments.corrupted.server() {
            Some(server) => PartyIndex::new(server).into_iter().collect(),
            None => PartyIndex::ALL.to_vec(),
        },
        delta: arguments.delta,
        // Who runs all three servers has nothing to hide from any of them.
        seed: 0,
    };
    let bar = progress_bar();
    let report = concilium_audit::audit(policy, &settings, servers, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = report.map_err(|error| Failure::new(FailureClass::Input, &error))?;
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    print(policy, &report, output)?;
    if report.is_refuted() {
        return Err(Failure::message(
            FailureClass::Refuted,
            format!(
                "a lower bound is above what is charged: the releases of task {} are less private than its \
                 budget says. Stop the task, keep this output, and run the audit again: a sound release is \
                 refuted in one run of {:.0} at most",
                policy.task,
                1.0 / report.false_alarm
            ),
        ));
    }
    Ok(())
}

fn print(policy: &TaskPolicy, report: &Report, output: &mut Output<impl Write>) -> Result<(), Failure> {
    output.line(format_args!(
        "task {}: {} releases of each of two ensembles that differ in {} of their models",
        report.task,
        report.releases,
        policy.votes_of_one_unit()
    ))?;
    let title = [
        "release",
        "own noise of",
        "delta",
        "in one",
        "in the other",
        "lower bound",
        "claim",
        "exact",
        "verdict",
    ];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    rows.extend(report.findings.iter().map(row));
    output.table(&rows)?;
    if report.findings.iter().any(|finding| finding.verdict == Verdict::TooFewReleases) {
        output.line("TOO FEW: no outcome of so many releases would be above the claim; give --releases")?;
    }
    let verdict = if report.is_refuted() {
        "REFUTED: a loss was measured that is larger than what is charged"
    } else {
        "not refuted: no loss was measured that is larger than what is charged, which is no proof"
    };
    output.line(verdict)
}

fn row(finding: &Finding) -> Vec<String> {
    let events = |index: usize| format!("{} of {}", finding.hits[index], finding.trials[index]);
    vec![
        finding.view.to_owned(),
        format!("server {}", finding.corrupted_server),
        finding.delta.to_string(),
        events(0),
        events(1),
        format!("{:.3}", finding.lower_bound),
        format!("{:.3}", finding.claim),
        finding.exact.map_or_else(|| "-".to_owned(), |exact| format!("{exact:.3}")),
        match finding.verdict {
            Verdict::Holds => "holds",
            Verdict::TooFewReleases => "TOO FEW",
            Verdict::Refuted => "REFUTED",
        }
        .to_owned(),
    ]
}

fn write_json(path: &Path, report: &Report) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::message(FailureClass::Local, format!("cannot write `{}`: {error}", path.display()))
    };
    let mut text = serde_json::to_string_pretty(report).map_err(|error| failed(&error))?;
    text.push('\n');
    fs::write(path, text).map_err(|error| failed(&error))
}

fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} releases  {elapsed} elapsed, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
