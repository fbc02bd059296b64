//! What `check` prints, and its report for programs.

use std::{collections::BTreeMap, io::Write, time::Duration};

use concilium_client_library::terminal::{Failure, Output};
use concilium_network::{Check, Ending, Ring};
use ndarray::Array2;
use serde_json::json;

use super::{narrow, size};
use crate::{
    Found,
    oracle::Outputs,
    secure_run::{Cost, SecureRun},
};

/// The networks for which a time is estimated: their name, what a message takes one way, and bits a second.
const NETWORKS: [(&str, Duration, f64); 2] = [
    ("within a data centre", Duration::from_micros(100), 10e9),
    ("over the internet", Duration::from_millis(20), 100e6),
];

/// A difference of logits above which an owner is told what would make it smaller.
const NOTICEABLE: f64 = 0.01;

/// Prints what a secure run has shown.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn secure_run(
    check: &Check,
    run: &SecureRun,
    outputs: &Outputs,
    origin: &str,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    output.line(format_args!("\nsecure run of three parties in this process: {} {origin}", run.rows))?;
    let titles =
        ["step", "name", "off plaintext (last places)", "off double precision", "largest seen", "proven"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for (index, (step, range)) in run.steps.iter().zip(&check.steps).enumerate() {
        rows.push(vec![
            index.to_string(),
            if step.name.is_empty() { "-".to_owned() } else { step.name.clone() },
            step.last_places.to_string(),
            format!("{:.1e}", step.difference),
            format!("{:.4}", step.largest),
            format!("{:.4}", range.minimum.abs().max(range.maximum.abs())),
        ]);
    }
    output.table(&rows)?;
    output.line(format_args!(
        "logits          at most {:.3e} off the network in double precision; proven: {:.3e}",
        run.logit_difference, run.error_bound
    ))?;
    output.line(format_args!("oracle          {}", outputs.by))?;
    output.line(format_args!(
        "outputs         at most {:.3e} off the oracle ({})",
        outputs.largest_difference,
        outputs.ending.name()
    ))?;
    if let Some(off) = outputs.misread {
        output.line(format_args!(
            "                before any encryption the imported network is {off:.3e} off the oracle: networks with 8-bit \
             activations are, as their rounding is left out; for another network report it"
        ))?;
    }
    output.line(format_args!(
        "labels          {} of {} agree with the oracle's",
        outputs.labels_agree, run.rows
    ))?;
    output.line(format_args!("rounds          {}, for any number of rows and owners", run.one.rounds))?;
    let sent = run.one.bytes_sent.map(size);
    output.line(format_args!("sent for a row  {} (servers 0, 1, 2)", sent.join(", ")))?;
    let memory = run.memory_bytes.map(|bytes| size(bytes as u64));
    output.line(format_args!("server memory   {} (servers 0, 1, 2)", memory.join(", ")))?;
    let upload = size(upload_bytes(check.ring, check.parameters));
    output.line(format_args!("upload          64 B, {upload}, {upload} (servers 0, 1, 2)"))?;
    for cost in costs(run) {
        output.line(format_args!("{:<15} {}", rows_together(cost), estimates(cost)))?;
    }
    if let Some(advice) = advice(check, run, outputs) {
        output.line(format_args!("\nnote: {advice}"))?;
    }
    Ok(())
}

/// Bytes that two of the servers are sent of a model, each.
pub(super) fn upload_bytes(ring: Ring, parameters: usize) -> u64 {
    (ring.element_bytes() * parameters) as u64
}

/// The costs to show: of one row, and of several where there were several.
fn costs(run: &SecureRun) -> impl Iterator<Item = &Cost> {
    [Some(&run.one), Some(&run.many).filter(|many| many.rows > 1)].into_iter().flatten()
}

fn rows_together(cost: &Cost) -> String {
    match cost.rows {
        1 => "time for a row".to_owned(),
        rows => format!("for {rows} at once"),
    }
}

fn estimates(cost: &Cost) -> String {
    let networks = NETWORKS.map(|(name, one_way, bits)| {
        format!("about {} {name} ({} one way)", time(cost.over(one_way, bits)), time(one_way))
    });
    format!("{} with no network, {}", time(cost.elapsed), networks.join(", "))
}

fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

/// What would make the answer more exact, where it is not.
///
/// The fractional bits are bounded by the step that is proven to become largest. Rows that reach much less
/// there say that narrower ranges of the features would leave room for more bits.
fn advice(check: &Check, run: &SecureRun, outputs: &Outputs) -> Option<String> {
    if run.logit_difference <= NOTICEABLE && outputs.labels_agree == run.rows {
        return None;
    }
    if let Some(step) = run.steps.iter().find(|step| step.difference > NOTICEABLE / 20.0)
        && step.by_pieces
    {
        return Some(format!(
            "most of the difference comes from smooth functions ({} is the first), which are computed by straight \
             pieces within 0.001 of them; ReLU and its relatives are exact. More fractional bits would not help",
            step.name
        ));
    }
    let steps = check.steps.iter().zip(&run.steps).filter(|(range, step)| {
        range.headroom_bits.is_some()
            && step.largest > 0.0
            && range.minimum.abs().max(range.maximum.abs()) > 0.0
    });
    let (range, step) = steps.min_by_key(|(range, _)| range.headroom_bits)?;
    let proven = range.minimum.abs().max(range.maximum.abs());
    // Each bit of range costs two of the double scale.
    let bits = ((proven / step.largest).log2() / 2.0).floor();
    let place = if step.name.is_empty() {
        format!("step {}", range.step)
    } else {
        format!("{} (step {})", step.name, range.step)
    };
    if bits < 1.0 {
        return Some(format!(
            "{} fractional bits are what {place} leaves room for, and these rows do use its range: smaller weights \
             (weight decay, BatchNormalization) would make the answer more exact",
            check.fractional_bits
        ));
    }
    Some(format!(
        "calibration would help: {place} may reach {proven:.3} for inputs within the ranges, and bounds the fractional \
         bits to {}; in these rows it reaches {:.3}. Ranges of the features that are as narrow as the data allows \
         (--input-minimum, --input-maximum, or the task's), or a Clip before that step, would leave room for up to \
         {bits} more bits",
        check.fractional_bits, step.largest
    ))
}

/// The report of `check` for programs, pretty-printed JSON. Without a run the model is refused for `reason`.
#[must_use]
pub fn check_json(found: &Found, reason: Option<&str>) -> String {
    let Found { check, run, outputs, narrow, given_rows } = found;
    let (check, run, outputs) = (check.as_ref(), run.as_ref(), outputs.as_ref());
    let headroom = check.and_then(|check| check.steps.iter().filter_map(|step| step.headroom_bits).min());
    let rows = |numbers: &Array2<f64>| numbers.outer_iter().map(|row| row.to_vec()).collect::<Vec<_>>();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let cost = |cost: &Cost| {
        let networks = NETWORKS.map(|(name, one_way, bits)| (name, milliseconds(cost.over(one_way, bits))));
        json!({
            "rows": cost.rows,
            "bytes": cost.bytes_sent,
            "elapsed_ms": milliseconds(cost.elapsed),
            "estimated_ms": networks.into_iter().collect::<BTreeMap<_, _>>(),
        })
    };
    let steps = |run: &SecureRun| {
        let step = |step: &crate::secure_run::StepRun| {
            json!({
                "name": step.name,
                "last_places": step.last_places,
                "difference": step.difference,
                "largest": step.largest,
            })
        };
        run.steps.iter().map(step).collect::<Vec<_>>()
    };
    let advice = match (check, run, outputs) {
        (Some(check), Some(run), Some(outputs)) => advice(check, run, outputs),
        _ => None,
    };
    let narrow = match (narrow, check, outputs) {
        (Some(narrow), Some(check), Some(outputs)) => {
            Some(narrow::json(narrow, check, outputs.labels_agree, *given_rows))
        }
        _ => None,
    };
    let report = json!({
        "ok": reason.is_none() && run.is_some(),
        "reason": reason,
        "operators": check.map(|check| check.operators.iter().cloned().collect::<BTreeMap<_, _>>()),
        "parameters": check.map(|check| check.parameters),
        "ring_bits": check.map(|check| check.ring),
        "fractional_bits": check.map(|check| check.fractional_bits),
        "headroom_bits": headroom,
        "check": check,
        "rows": run.map(|run| run.rows),
        "rounds": run.map(|run| run.one.rounds),
        "bytes": run.map(|run| run.one.bytes_sent),
        "memory_bytes": run.map(|run| run.memory_bytes),
        "cost": run.map(|run| costs(run).map(cost).collect::<Vec<_>>()),
        "steps": run.map(steps),
        "logits_mpc": run.map(|run| rows(&run.logits)),
        "logits_max_abs_error": run.map(|run| run.logit_difference),
        "proven_error_bound": run.map(|run| run.error_bound),
        "outputs": outputs.map(|outputs| outputs.ending.name()),
        "outputs_are_the_files": outputs.map(|outputs| outputs.ending != Ending::Unknown),
        "oracle": outputs.map(|outputs| &outputs.by),
        "outputs_mpc": outputs.map(|outputs| rows(&outputs.secure)),
        "outputs_fixed_point": outputs.map(|outputs| rows(&outputs.fixed)),
        "outputs_oracle": outputs.map(|outputs| rows(&outputs.oracle)),
        "max_abs_error": outputs.map(|outputs| outputs.largest_difference),
        "labels_agree": outputs.map(|outputs| outputs.labels_agree),
        "advice": advice,
        "narrow_ring": narrow,
    });
    format!("{report:#}")
}
