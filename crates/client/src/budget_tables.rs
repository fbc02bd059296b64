//! Budgets as tables for a terminal, for operators, owners and clients: each shows what its reader may know.

use std::io::Write;

use concilium_privacy::NanoRho;
use concilium_rpc::{
    time,
    v1::{BudgetWindow, TaskBudget},
};

use crate::{
    budget::Reading,
    task::declaration,
    terminal::{Failure, Output},
};

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Stands where nothing can be said.
fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Prints what was spent and what can refuse a request: the budget of each task, its window, clients,
/// owners' bounds, on whose word the epoch began, and stops. `now_ms` is the time, in milliseconds since
/// 1970-01-01 UTC.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn print(tasks: &[TaskBudget], now_ms: i64, output: &mut Output<impl Write>) -> Result<(), Failure> {
    output.table(&budget_rows(tasks))?;
    for rows in [window_rows(tasks, now_ms), client_rows(tasks), owner_rows(tasks)] {
        if rows.len() > 1 {
            output.line("")?;
            output.table(&rows)?;
        }
    }
    for task in tasks {
        if let Some(declaration) = declaration(task.epoch_basis(), &task.epoch_attested_by) {
            output.line(format_args!("task {}: {}", task.task, declaration.in_words(task.epoch)))?;
        }
        if let Some(stop) = &task.stopped {
            let reason = stop.reason.split_whitespace().collect::<Vec<_>>().join(" ");
            let since = time::moment(u64::try_from(stop.since_unix_ms).unwrap_or_default());
            output.line(format_args!("TASK {} IS STOPPED since {since}: {reason}", task.task))?;
        }
    }
    Ok(())
}

fn budget_rows(tasks: &[TaskBudget]) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "task",
        "epoch",
        "spent rho",
        "epsilon",
        "cap rho",
        "epsilon",
        "delta",
        "left rho",
        "rows left",
        "requests",
        "rows",
        "rho/row",
        "noise",
    ])];
    for task in tasks {
        let reading = Reading::new(task);
        rows.push(vec![
            task.task.clone(),
            task.epoch.to_string(),
            reading.spent.to_string(),
            format!("{:.3}", reading.epsilon),
            reading.cap.to_string(),
            format!("{:.3}", reading.epsilon_cap),
            reading.delta.map_or_else(|| "?".to_owned(), |_| format!("{:e}", task.delta)),
            reading.left.to_string(),
            reading.rows_left.to_string(),
            task.requests.to_string(),
            task.rows.to_string(),
            NanoRho::new(task.cost_nano_rho_per_row).to_string(),
            task.mechanism.clone(),
        ]);
    }
    rows
}

fn window_rows(tasks: &[TaskBudget], now_ms: i64) -> Vec<Vec<String>> {
    let mut rows = vec![row(["task", "window", "spent rho", "cap rho", "next row fits"])];
    for (task, window) in tasks.iter().filter_map(|task| Some((task, task.window?))) {
        let BudgetWindow { seconds, cap_nano_rho, spent_nano_rho, next_row_at_unix_ms } = window;
        let next = match next_row_at_unix_ms {
            None => "now".to_owned(),
            Some(i64::MAX) => "never".to_owned(),
            Some(at) => {
                let left = u64::try_from(at.saturating_sub(now_ms)).unwrap_or_default();
                let at = u64::try_from(at).unwrap_or_default();
                format!("in {}, at {}", time::wait(left), time::moment(at))
            }
        };
        rows.push(vec![
            task.task.clone(),
            time::wait(seconds.saturating_mul(1000)),
            NanoRho::new(spent_nano_rho).to_string(),
            NanoRho::new(cap_nano_rho).to_string(),
            next,
        ]);
    }
    rows
}

fn client_rows(tasks: &[TaskBudget]) -> Vec<Vec<String>> {
    let mut rows =
        vec![row(["client", "task", "spent rho", "left rho", "all tasks rho", "left of all tasks rho"])];
    for task in tasks {
        for client in &task.clients {
            let left = |cap: Option<u64>, spent: u64| {
                or_dash(cap.map(|cap| NanoRho::new(cap).saturating_sub(NanoRho::new(spent))))
            };
            rows.push(vec![
                client.client.clone(),
                task.task.clone(),
                NanoRho::new(client.spent_nano_rho).to_string(),
                left(task.cap_per_client_nano_rho, client.spent_nano_rho),
                NanoRho::new(client.spent_all_tasks_nano_rho).to_string(),
                left(task.cap_per_client_all_tasks_nano_rho, client.spent_all_tasks_nano_rho),
            ]);
        }
    }
    rows
}

/// The owners' own bounds: a header, and a row for each owner of each task that has set one.
pub fn owner_rows(tasks: &[TaskBudget]) -> Vec<Vec<String>> {
    let mut rows = vec![row(["owner", "task", "epoch", "bound rho", "spent rho", "left rho", "rows left"])];
    for task in tasks {
        for owner in &task.owners {
            let (cap, spent) = (NanoRho::new(owner.cap_nano_rho), NanoRho::new(owner.spent_nano_rho));
            let left = cap.saturating_sub(spent);
            rows.push(vec![
                owner.owner.clone(),
                task.task.clone(),
                task.epoch.to_string(),
                cap.to_string(),
                spent.to_string(),
                left.to_string(),
                or_dash(left.units().checked_div(task.cost_nano_rho_per_row)),
            ]);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use concilium_rpc::v1::{BudgetStop, ClientSpending, EpochBasis, OwnerBudget};

    use super::*;

    const NOW: i64 = 1_795_274_880_000;

    fn task() -> TaskBudget {
        TaskBudget {
            task: "digits".into(),
            epoch: 2,
            spent_nano_rho: Some(250_000_000),
            cap_nano_rho: 1_000_000_000,
            cap_per_client_nano_rho: Some(500_000_000),
            cost_nano_rho_per_row: 40_000_001,
            delta: 1e-5,
            mechanism: "discrete Gaussian, sigma 5".into(),
            clients: vec![ClientSpending {
                client: "alice".into(),
                spent_nano_rho: 200_000_000,
                spent_all_tasks_nano_rho: 300_000_000,
            }],
            cap_per_client_all_tasks_nano_rho: Some(1_300_000_000),
            window: Some(BudgetWindow {
                seconds: 86_400,
                cap_nano_rho: 260_000_000,
                spent_nano_rho: 240_000_000,
                next_row_at_unix_ms: Some(NOW + 11_500_000),
            }),
            owners: vec![OwnerBudget {
                owner: "ward-7".into(),
                cap_nano_rho: 400_000_000,
                spent_nano_rho: 250_000_000,
            }],
            stopped: Some(BudgetStop { reason: "server 1\nwent back".into(), since_unix_ms: NOW }),
            epoch_basis: EpochBasis::Retrained.into(),
            epoch_attested_by: "the board".into(),
            ..TaskBudget::default()
        }
    }

    fn printed(task: TaskBudget) -> String {
        let mut bytes = Vec::new();
        print(&[task], NOW, &mut Output::new(&mut bytes)).unwrap();
        // Tables are padded; cells are what is looked for.
        String::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(|line| {
                line.split("  ")
                    .filter(|cell| !cell.is_empty())
                    .map(str::trim)
                    .collect::<Vec<_>>()
                    .join(" | ")
                    + "\n"
            })
            .collect()
    }

    #[test]
    fn all_that_can_refuse_a_request_is_told() {
        let text = printed(task());
        for needle in [
            "digits | 2 | 0.25 |",
            "digits | 24 h | 0.24 | 0.26 | in 3 h 12 min, at 2026-11-21 18:40 UTC",
            "alice | digits | 0.2 | 0.3 | 0.3 | 1",
            "ward-7 | digits | 2 | 0.4 | 0.25 | 0.15 | 3",
            "Epoch 2 began with nothing spent",
            "the board answers",
            "TASK digits IS STOPPED since 2026-11-21 15:28 UTC: server 1 went back",
        ] {
            assert!(text.contains(needle), "{needle}: {text}");
        }
    }

    #[test]
    fn what_is_not_there_takes_no_room() {
        let bare = TaskBudget {
            task: "digits".into(),
            cost_nano_rho_per_row: 1,
            delta: 1e-5,
            ..TaskBudget::default()
        };
        assert_eq!(printed(bare.clone()).lines().count(), 2);
        let open = BudgetWindow { seconds: 7200, cap_nano_rho: 5, ..BudgetWindow::default() };
        let text = printed(TaskBudget { window: Some(open), ..bare });
        assert!(text.contains("digits | 2 h | 0 | 0.000000005 | now"), "{text}");
        let none =
            TaskBudget { cap_per_client_nano_rho: None, cap_per_client_all_tasks_nano_rho: None, ..task() };
        assert!(printed(none).contains("alice | digits | 0.2 | - | 0.3 | -"));
    }
}
