//! What the program prints about budgets and servers.

use std::{
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use concilium_client_library::{
    budget::Reading,
    terminal::{Failure, Output},
};
use concilium_privacy::NanoRho;
use concilium_rpc::v1::{GetBudgetResponse, GetStatusResponse, TaskBudget};

/// Days before the end of a certificate from which it is pointed at.
const CERTIFICATE_WARNING_DAYS: i64 = 30;

const DAY_MS: i64 = 86_400_000;

/// Characters of a digest that are shown.
const SHOWN_DIGEST: usize = 16;

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(bytes).chars().take(SHOWN_DIGEST).collect()
}

/// Prints the budgets of servers.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn budget(answers: &[GetBudgetResponse], output: &mut Output<impl Write>) -> Result<(), Failure> {
    for (position, answer) in answers.iter().enumerate() {
        if position > 0 {
            output.line("")?;
        }
        output.line(format_args!(
            "server {}: ledger of {} entries, head {}",
            answer.party,
            answer.ledger_head_sequence,
            digest(&answer.ledger_head_hash)
        ))?;
        if answer.tasks.is_empty() {
            output.line("no tasks")?;
            continue;
        }
        output.table(&budget_rows(&answer.tasks))?;
        let clients = client_rows(&answer.tasks);
        if clients.len() > 1 {
            output.line("")?;
            output.table(&clients)?;
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

fn client_rows(tasks: &[TaskBudget]) -> Vec<Vec<String>> {
    let mut rows = vec![row(["client", "task", "spent rho", "left rho"])];
    for task in tasks {
        for client in &task.clients {
            let spent = NanoRho::new(client.spent_nano_rho);
            let left = task.cap_per_client_nano_rho.map(|cap| NanoRho::new(cap).saturating_sub(spent));
            rows.push(vec![
                client.client.clone(),
                task.task.clone(),
                spent.to_string(),
                left.map_or_else(|| "-".to_owned(), |left| left.to_string()),
            ]);
        }
    }
    rows
}

/// Prints the state of servers.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn status(answers: &[GetStatusResponse], output: &mut Output<impl Write>) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    for (position, answer) in answers.iter().enumerate() {
        if position > 0 {
            output.line("")?;
        }
        output.line(format_args!(
            "server {}: version {}, up {}, certificate {}",
            answer.party,
            answer.version,
            duration(answer.uptime_ms),
            validity(answer.certificate_expires_unix_ms.saturating_sub(now))
        ))?;
        let mut lanes = vec![row(["lane", "next", "previous", "batches", "failed", "last error"])];
        for lane in &answer.lanes {
            let connected = |connected: bool| if connected { "connected" } else { "LOST" }.to_owned();
            lanes.push(vec![
                lane.lane.to_string(),
                connected(lane.next_connected),
                connected(lane.previous_connected),
                lane.batches.to_string(),
                lane.failed_batches.to_string(),
                // One line of the table, whatever the error holds.
                lane.last_error.split_whitespace().collect::<Vec<_>>().join(" "),
            ]);
        }
        output.table(&lanes)?;
        let mut tasks =
            vec![row(["task", "epoch", "owners", "ready", "staged", "rejected", "waiting", "policy"])];
        for task in &answer.tasks {
            tasks.push(vec![
                task.task.clone(),
                task.epoch.to_string(),
                task.owners_ready.to_string(),
                task.models_ready.to_string(),
                task.models_staged.to_string(),
                task.models_rejected.to_string(),
                task.queued_requests.to_string(),
                digest(&task.policy_digest),
            ]);
        }
        output.table(&tasks)?;
    }
    Ok(())
}

/// Tells in one line each what the servers disagree about for good: tasks and policies. Models in the
/// middle of being shared and waiting requests may differ.
pub fn status_differences(answers: &[GetStatusResponse]) -> Vec<String> {
    let mut told = Vec::new();
    let Some((first, others)) = answers.split_first() else { return told };
    for other in others {
        let servers = format!("servers {} and {}", first.party, other.party);
        if first.version != other.version {
            told.push(format!("{servers} run the versions {} and {}", first.version, other.version));
        }
        for task in &first.tasks {
            match other.tasks.iter().find(|candidate| candidate.task == task.task) {
                None => told.push(format!("task {}: server {} has no such task", task.task, other.party)),
                Some(copy) if copy.policy_digest != task.policy_digest => {
                    told.push(format!("task {}: {servers} have different policies", task.task));
                }
                Some(_) => {}
            }
        }
        for task in &other.tasks {
            if first.tasks.iter().all(|candidate| candidate.task != task.task) {
                told.push(format!("task {}: server {} has no such task", task.task, first.party));
            }
        }
    }
    told
}

fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn validity(left_ms: i64) -> String {
    match left_ms / DAY_MS {
        _ if left_ms <= 0 => "HAS EXPIRED: issue a new one".to_owned(),
        days if days < CERTIFICATE_WARNING_DAYS => format!("EXPIRES IN {days} DAYS: issue a new one"),
        days => format!("valid for {days} days"),
    }
}

#[cfg(test)]
mod tests {
    use concilium_rpc::v1::{ClientSpending, LaneStatus, TaskStatus};

    use super::*;

    fn printed(print: impl FnOnce(&mut Output<&mut Vec<u8>>) -> Result<(), Failure>) -> String {
        let mut bytes = Vec::new();
        print(&mut Output::new(&mut bytes)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    fn state(party: u32) -> GetStatusResponse {
        GetStatusResponse {
            party,
            version: "0.1.0".into(),
            uptime_ms: 7_300_000,
            lanes: vec![LaneStatus {
                lane: 0,
                next_connected: true,
                previous_connected: false,
                batches: 12,
                failed_batches: 1,
                last_error: "server 2\nis gone".into(),
            }],
            tasks: vec![TaskStatus {
                task: "digits".into(),
                epoch: 1,
                models_ready: 25,
                owners_ready: 24,
                policy_digest: vec![0xcd; 32].into(),
                ..TaskStatus::default()
            }],
            certificate_expires_unix_ms: 0,
        }
    }

    #[test]
    fn budgets_show_what_is_left_to_whom() {
        let answer = GetBudgetResponse {
            party: 1,
            tasks: vec![TaskBudget {
                task: "digits".into(),
                epoch: 1,
                spent_nano_rho: Some(250_000_000),
                cap_nano_rho: 1_000_000_000,
                cap_per_client_nano_rho: Some(500_000_000),
                cost_nano_rho_per_row: 40_000_001,
                delta: 1e-5,
                clients: vec![ClientSpending { client: "alice".into(), spent_nano_rho: 250_000_000 }],
                mechanism: "discrete Gaussian, sigma 5".into(),
                ..TaskBudget::default()
            }],
            ledger_head_sequence: 7,
            ledger_head_hash: vec![0xab; 32].into(),
        };
        let text = printed(|output| budget(std::slice::from_ref(&answer), output));
        for needle in
            ["server 1: ledger of 7 entries, head abababababababab", "0.75", "1e-5", "sigma 5", "alice"]
        {
            assert!(text.contains(needle), "{needle}: {text}");
        }
        let alice = text.lines().find(|line| line.starts_with("alice")).unwrap();
        assert!(alice.ends_with("0.25  0.25") || alice.ends_with("0.25      0.25"), "{alice}");
    }

    #[test]
    fn states_point_at_what_is_wrong() {
        let text = printed(|output| status(&[state(0), state(1)], output));
        for needle in ["up 2 h", "HAS EXPIRED", "connected", "LOST", "server 2 is gone", "cdcdcdcd"] {
            assert!(text.contains(needle), "{needle}: {text}");
        }
        assert_eq!(validity(3 * DAY_MS + 1), "EXPIRES IN 3 DAYS: issue a new one");
        assert_eq!(validity(300 * DAY_MS), "valid for 300 days");
        assert_eq!((duration(5_000), duration(300_000_000)), ("5 s".to_owned(), "3 days".to_owned()));
    }

    #[test]
    fn different_policies_are_told() {
        let mut states = [state(0), state(1), state(2)];
        states[1].tasks[0].queued_requests = 9;
        assert!(status_differences(&states).is_empty());
        states[1].tasks[0].policy_digest = vec![1; 32].into();
        states[2].tasks.clear();
        states[2].version = "0.2.0".into();
        let told = status_differences(&states).join("\n");
        for needle in ["servers 0 and 1 have different policies", "server 2 has no such task", "0.2.0"] {
            assert!(told.contains(needle), "{needle}: {told}");
        }
    }
}
