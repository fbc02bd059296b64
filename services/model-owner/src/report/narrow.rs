//! What `check` says of the ring of 32 bits.

use std::io::Write;

use concilium_client_library::terminal::{Failure, Output};
use concilium_network::{Check, Ring};
use serde_json::{Value, json};

use super::{check::upload_bytes, size};
use crate::{
    narrow::{Narrow, NarrowRun, Recommendation},
    oracle::Outputs,
    secure_run::SecureRun,
};

/// Prints what the ring of 32 bits would give beside `wide`, the run in 64 bits.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn narrow_ring(
    narrow: &Narrow,
    wide: &SecureRun,
    outputs: &Outputs,
    given: bool,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    if let Narrow::Fits(found) = narrow {
        output.line(format_args!(
            "\nring of 32 bits, {} fractional bits, beside that of 64",
            found.fractional_bits
        ))?;
        let titles = ["", "32 bits", "64 bits"].map(str::to_owned);
        let row = |name: &str, of: [String; 2]| {
            let [narrow, wide] = of;
            [name.to_owned(), narrow, wide]
        };
        let runs = [&found.run, wide];
        let agreeing = [found.labels_agree, outputs.labels_agree];
        let rows = vec![
            titles,
            row("labels as the oracle's", agreeing.map(|labels| format!("{labels} of {}", wide.rows))),
            row("logits off by at most", runs.map(|run| format!("{:.1e}", run.logit_difference))),
            row("rounds", runs.map(|run| run.one.rounds.to_string())),
            row("sent for a row", runs.map(|run| size(sent(run)))),
            row("server memory", runs.map(|run| size(memory(run)))),
        ];
        output.table(&rows.into_iter().map(Vec::from).collect::<Vec<_>>())?;
        if found.labels_kept < wide.rows {
            output.line(format_args!(
                "{} of {} rows get the same label in both",
                found.labels_kept, wide.rows
            ))?;
        }
    }
    output.line(format_args!("\nring of 32 bits  {}", recommendation(narrow, outputs.labels_agree, given)))
}

/// The same for programs.
pub(super) fn json(narrow: &Narrow, check: &Check, labels_agree: usize, given: bool) -> Value {
    let found: Option<&NarrowRun> = match narrow {
        Narrow::Fits(found) => Some(found),
        Narrow::Refused(_) => None,
    };
    let reason = match narrow {
        Narrow::Refused(reason) => Some(reason),
        Narrow::Fits(_) => None,
    };
    json!({
        "fits": found.is_some(),
        "reason": reason,
        "fractional_bits": found.map(|found| found.fractional_bits),
        "headroom_bits": found.and_then(|found| found.headroom_bits),
        "labels_agree": found.map(|found| found.labels_agree),
        "labels_kept": found.map(|found| found.labels_kept),
        "logits_max_abs_error": found.map(|found| found.run.logit_difference),
        "rounds": found.map(|found| found.run.one.rounds),
        "bytes": found.map(|found| found.run.one.bytes_sent),
        "memory_bytes": found.map(|found| found.run.memory_bytes),
        "upload_bytes": found.map(|_| upload_bytes(Ring::Bits32, check.parameters)),
        "recommended": narrow.recommendation(labels_agree, given) == Recommendation::Narrow,
        "recommendation": recommendation(narrow, labels_agree, given),
    })
}

/// What to do, in a line.
fn recommendation(narrow: &Narrow, labels_agree: usize, given: bool) -> String {
    let (kind, text) = (narrow.recommendation(labels_agree, given), |text: &str| text.to_owned());
    match (kind, narrow) {
        (_, Narrow::Refused(reason)) => format!("does not do: {reason}"),
        (Recommendation::Narrow, _) => {
            text("does: no label of these rows is lost; a task with ring_bits = 32 halves memory and upload")
        }
        (Recommendation::LabelsLost, Narrow::Fits(found)) => format!(
            "does not do: {} rows get the oracle's label instead of {labels_agree}; keep 64 bits, or narrow the \
             ranges of the features",
            found.labels_agree
        ),
        _ => text("may do: it fits; check its labels with rows of your own (--inputs)"),
    }
}

fn sent(run: &SecureRun) -> u64 {
    run.one.bytes_sent.iter().sum()
}

/// The most that a server holds.
fn memory(run: &SecureRun) -> u64 {
    run.memory_bytes.iter().max().copied().unwrap_or(0) as u64
}
