//! What the program prints.

mod check;
mod narrow;

use std::{
    io::Write,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use concilium_client_library::{
    Task, budget_tables,
    terminal::{Failure, Output},
};
use concilium_network::FixedNetwork;
use concilium_rpc::v1::{SelfTestFigures, TaskBudget};

pub use self::{
    check::{check_json, secure_run},
    narrow::narrow_ring,
};
use crate::{share::Shared, store::ModelEverywhere};

/// One line about a model that could be shared.
pub fn prepared(path: &Path, fixed: &FixedNetwork) -> String {
    format!(
        "{}: {} parameters, logit error at most {:.3e}",
        path.display(),
        fixed.architecture().parameter_count(),
        fixed.error_bound()
    )
}

/// One line about a model that was shared.
pub fn shared(name: &str, task: &Task, shared: &Shared) -> String {
    match shared {
        Shared::Ready { parameters, bytes, elapsed, version, self_test } => format!(
            "{name} is ready on all three servers for task {}: version {version}, {parameters} parameters, {} sent \
             in {:.1} s{}",
            task.name,
            size(bytes.iter().sum()),
            elapsed.as_secs_f64(),
            self_test.map_or_else(String::new, |test| format!("; self-test {}", tested(&test)))
        ),
        Shared::AlreadyReady => format!(
            "{name} was ready for task {} before and was left alone; whether it is this file cannot be \
             known from its shares, --replace shares it anew",
            task.name
        ),
    }
}

/// Prints models and their states.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn models(models: &[ModelEverywhere], output: &mut Output<impl Write>) -> Result<(), Failure> {
    if models.is_empty() {
        return output.line("no models; share one with `concilium-owner share`");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    let mut rows = vec![
        [
            "model",
            "version",
            "task",
            "epoch",
            "owner",
            "parameters",
            "budget rho",
            "uploaded",
            "self-test",
            "state",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for model in models {
        let uploaded = model.copies.iter().flatten().map(|copy| copy.uploaded_at_unix_ms).max();
        rows.push(vec![
            model.name.clone(),
            model.version.to_string(),
            model.task.clone(),
            model.epoch().to_string(),
            model.owner.clone(),
            model.parameters().to_string(),
            model.budget().map_or_else(|| "-".to_owned(), |budget| budget.to_string()),
            uploaded.map_or_else(String::new, |at| age(now.saturating_sub(at))),
            model.self_test().map_or_else(|| "-".to_owned(), |test| tested(&test)),
            model.state(),
        ]);
    }
    output.table(&rows)
}

/// Prints the owner's own bounds, and what is spent of them; nothing if it has set none for models that
/// vote.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn bounds(tasks: &[TaskBudget], output: &mut Output<impl Write>) -> Result<(), Failure> {
    let rows = budget_tables::owner_rows(tasks);
    if rows.len() < 2 {
        return Ok(());
    }
    output.line("")?;
    output.table(&rows)
}

/// What a self-test took.
fn tested(test: &SelfTestFigures) -> String {
    let milliseconds = test.microseconds as f64 / 1e3;
    format!("{milliseconds:.0} ms, {} rounds, {}", test.rounds, size(test.bytes_sent))
}

/// A number of bytes in the largest unit that it fills.
fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// How long ago something was, in the largest unit that it fills.
fn age(milliseconds: i64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        // Clocks differ by a little.
        ..60 => "just now".to_owned(),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..86_400 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use concilium_rpc::v1::{ModelState, OwnerBudget};

    use super::*;
    use crate::store::tests::model;

    #[test]
    fn sizes_and_ages_use_fitting_units() {
        assert_eq!(size(64), "64 B");
        assert_eq!(size(21_000), "21.0 kB");
        assert_eq!(size(536_870_912), "536.9 MB");
        assert_eq!(age(-5_000), "just now");
        assert_eq!(age(125_000), "2 min ago");
        assert_eq!(age(7_300_000), "2 h ago");
        assert_eq!(age(i64::MAX), format!("{} days ago", i64::MAX / 86_400_000));
    }

    #[test]
    fn bounds_are_listed_with_what_is_spent_of_them() {
        let owners = vec![OwnerBudget { owner: "ward-7".into(), cap_nano_rho: 500, spent_nano_rho: 420 }];
        let task = TaskBudget {
            task: "digits".into(),
            epoch: 1,
            cost_nano_rho_per_row: 40,
            ..TaskBudget::default()
        };
        let printed = |task: TaskBudget| {
            let mut bytes = Vec::new();
            bounds(&[task], &mut Output::new(&mut bytes)).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(printed(task.clone()), "");
        let text = printed(TaskBudget { owners, ..task });
        let cells: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(cells, ["ward-7", "digits", "1", "0.0000005", "0.00000042", "0.00000008", "2"]);
    }

    #[test]
    fn models_are_listed_with_their_states() {
        let mut bytes = Vec::new();
        let everywhere = ModelEverywhere {
            task: "digits".into(),
            owner: "ward-7".into(),
            name: "m".into(),
            version: 1,
            copies: [Some(model("m", ModelState::Ready, 1)), None, Some(model("m", ModelState::Staged, 1))],
        };
        models(&[everywhere], &mut Output::new(&mut bytes)).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("  0.5  "), "{text}");
        assert!(text.contains("ready on server 0, absent on server 1, staged on server 2"), "{text}");
        let mut bytes = Vec::new();
        models(&[], &mut Output::new(&mut bytes)).unwrap();
        assert!(String::from_utf8(bytes).unwrap().contains("share one"));
    }
}
