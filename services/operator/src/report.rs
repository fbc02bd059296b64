//! What the program prints about budgets and servers.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use concilium_client_library::{
    budget_tables,
    terminal::{Failure, Output},
};
use concilium_rpc::inspection::utc;
use concilium_rpc::v1::{
    FindModelSetsResponse, GetBudgetResponse, GetStatusResponse, LaneWait, ModelSet, ResumeTaskResponse,
    SetLogFilterResponse,
};

/// Days before the end of a certificate from which it is pointed at.
const CERTIFICATE_WARNING_DAYS: i64 = concilium_rpc::inspection::EXPIRY_WARNING_DAYS;

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
        budget_tables::print(&answer.tasks, now_ms(), output)?;
    }
    Ok(())
}

/// Prints sets of models. Servers that know a set list the same, because its digest covers it: each is
/// printed once, with the servers that know it and since when.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn model_sets(answers: &[FindModelSetsResponse], output: &mut Output<impl Write>) -> Result<(), Failure> {
    let mut known: BTreeMap<&[u8], Vec<(u32, &ModelSet)>> = BTreeMap::new();
    for answer in answers {
        for set in &answer.sets {
            known.entry(&set.digest[..]).or_default().push((answer.party, set));
        }
    }
    for (digest, holders) in known {
        let set = holders[0].1;
        output.line(format_args!(
            "model set {}: {} models of task {}, epoch {}",
            hex::encode(digest),
            set.models.len(),
            set.task,
            set.epoch
        ))?;
        for (party, set) in &holders {
            output
                .line(format_args!("server {party}: first answer {}", utc(set.first_used_unix_ms / 1000)))?;
        }
        let mut rows = vec![row(["owner", "model", "version", "content"])];
        rows.extend(set.models.iter().map(|model| {
            row([&model.owner, &model.model, &model.version.to_string(), &hex::encode(&model.content_digest)])
        }));
        output.table(&rows)?;
    }
    Ok(())
}

/// Prints the state of servers.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn status(answers: &[GetStatusResponse], output: &mut Output<impl Write>) -> Result<(), Failure> {
    let now = now_ms();
    for (position, answer) in answers.iter().enumerate() {
        if position > 0 {
            output.line("")?;
        }
        let certificate = answer.certificate.clone().unwrap_or_default();
        output.line(format_args!(
            "server {}: version {}, up {}, certificate {}",
            answer.party,
            answer.version,
            duration(answer.uptime_ms),
            validity(certificate.not_after_unix_ms.saturating_sub(now))
        ))?;
        if certificate.authority_not_after_unix_ms.saturating_sub(now) < CERTIFICATE_WARNING_DAYS * DAY_MS {
            output.line(format_args!(
                "ITS AUTHORITY {}: {}",
                certificate.authority,
                validity(certificate.authority_not_after_unix_ms.saturating_sub(now))
            ))?;
        }
        if !certificate.problem.is_empty() {
            output.line(format_args!(
                "THE CERTIFICATE FILES ARE REFUSED: {}",
                in_one_line(&certificate.problem)
            ))?;
        }
        let mut lanes =
            vec![row(["lane", "next", "previous", "batches", "failed", "waits for", "last error"])];
        for lane in &answer.lanes {
            let connected = |connected: bool| if connected { "connected" } else { "LOST" }.to_owned();
            lanes.push(vec![
                lane.lane.to_string(),
                connected(lane.next_connected),
                connected(lane.previous_connected),
                lane.batches.to_string(),
                lane.failed_batches.to_string(),
                lane.wait.as_ref().map_or_else(|| "-".to_owned(), wait),
                in_one_line(&lane.last_error),
            ]);
        }
        output.table(&lanes)?;
        let mut peers = vec![row(["peer", "link", "for", "version", "last error"])];
        for peer in &answer.peers {
            let since = answer.server_time_unix_ms.saturating_sub(peer.since_unix_ms);
            peers.push(vec![
                format!("server {}", peer.party),
                if peer.connected { "connected" } else { "LOST" }.to_owned(),
                duration(u64::try_from(since).unwrap_or(0)),
                if peer.version.is_empty() { "?".to_owned() } else { peer.version.clone() },
                in_one_line(&peer.last_error),
            ]);
        }
        output.table(&peers)?;
        let mut tasks = vec![row([
            "task", "epoch", "owners", "ready", "staged", "rejected", "retired", "waiting", "policy",
        ])];
        for task in &answer.tasks {
            tasks.push(vec![
                task.task.clone(),
                task.epoch.to_string(),
                task.owners_ready.to_string(),
                task.models_ready.to_string(),
                task.models_staged.to_string(),
                task.models_rejected.to_string(),
                task.models_retired.to_string(),
                task.queued_requests.to_string(),
                digest(&task.policy_digest),
            ]);
        }
        output.table(&tasks)?;
        for task in &answer.tasks {
            if !task.stopped.is_empty() {
                output.line(format_args!("TASK {} IS STOPPED: {}", task.task, in_one_line(&task.stopped)))?;
            }
            for (owner, reason) in std::collections::BTreeMap::from_iter(&task.owners_left) {
                output.line(format_args!("task {}: owner {owner} {}", task.task, in_one_line(reason)))?;
            }
        }
    }
    Ok(())
}

/// Prints on which servers a task goes on.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn resumed(
    task: &str,
    answers: &[ResumeTaskResponse],
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    for ResumeTaskResponse { party, was_stopped } in answers {
        match was_stopped.as_str() {
            "" => output.line(format_args!("server {party}: task {task} was not stopped"))?,
            why => output.line(format_args!(
                "server {party}: task {task} goes on; it was stopped: {}",
                in_one_line(why)
            ))?,
        }
    }
    Ok(())
}

/// Prints what servers log, and what they logged before if it was `changed`.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn log_filters(
    answers: &[SetLogFilterResponse],
    changed: bool,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let now = now_ms();
    for answer in answers {
        let before = if changed { format!(" (was {})", answer.previous_filter) } else { String::new() };
        let then = answer.reverts_at_unix_ms.map_or_else(String::new, |end| {
            let left = duration(u64::try_from(end.saturating_sub(now)).unwrap_or(0));
            format!("; goes back to {} in {left}", answer.reverts_to)
        });
        output.line(format_args!("server {}: {}{before}{then}", answer.party, answer.filter))?;
    }
    Ok(())
}

/// Milliseconds since 1970-01-01 UTC.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
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

/// What a lane waits for: most waits are over before anybody can read them.
fn wait(wait: &LaneWait) -> String {
    let peer = wait.peer.map_or_else(|| "itself".to_owned(), |peer| format!("server {peer}"));
    format!("{peer} since {} ms ({})", wait.waited_ms, wait.step)
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

/// One line, whatever a server sends.
fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn validity(left_ms: i64) -> String {
    match left_ms / DAY_MS {
        _ if left_ms <= 0 => "HAS EXPIRED: renew it".to_owned(),
        days if days < CERTIFICATE_WARNING_DAYS => format!("EXPIRES IN {days} DAYS: renew it"),
        days => format!("valid for {days} days"),
    }
}

#[cfg(test)]
mod tests {
    use concilium_rpc::v1::{
        CertificateStatus, ClientSpending, LaneStatus, PeerStatus, TaskBudget, TaskStatus,
    };

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
                wait: Some(LaneWait {
                    step: "comparison of layer 2, round 7 of 26".into(),
                    peer: Some(2),
                    waited_ms: 3_100,
                }),
            }],
            tasks: vec![TaskStatus {
                task: "digits".into(),
                epoch: 1,
                models_ready: 25,
                owners_ready: 24,
                policy_digest: vec![0xcd; 32].into(),
                ..TaskStatus::default()
            }],
            certificate: Some(CertificateStatus { problem: "no ca.pem".into(), ..Default::default() }),
            peers: vec![PeerStatus { party: 2, last_error: "lost\nit".into(), ..PeerStatus::default() }],
            ..GetStatusResponse::default()
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
                clients: vec![ClientSpending {
                    client: "alice".into(),
                    spent_nano_rho: 250_000_000,
                    spent_all_tasks_nano_rho: 400_000_000,
                }],
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
        let cells: Vec<_> = alice.split_whitespace().collect();
        assert_eq!(cells, ["alice", "digits", "0.25", "0.25", "0.4", "-"]);
    }

    #[test]
    fn states_point_at_what_is_wrong() {
        let text = printed(|output| status(&[state(0), state(1)], output));
        for needle in [
            "up 2 h",
            "HAS EXPIRED",
            "AUTHORITY",
            "ARE REFUSED: no ca.pem",
            "lost it",
            "connected",
            "LOST",
            "server 2 is gone",
            "round 7 of 26",
            "cdcdcdcd",
        ] {
            assert!(text.contains(needle), "{needle}: {text}");
        }
        assert_eq!(validity(3 * DAY_MS + 1), "EXPIRES IN 3 DAYS: renew it");
        assert_eq!(validity(300 * DAY_MS), "valid for 300 days");
        assert_eq!((duration(5_000), duration(300_000_000)), ("5 s".to_owned(), "3 days".to_owned()));
    }

    #[test]
    fn filters_show_what_was_and_what_follows() {
        let mut answer = SetLogFilterResponse {
            party: 2,
            previous_filter: "info".into(),
            filter: "debug".into(),
            reverts_at_unix_ms: Some(now_ms() + 601_000),
            reverts_to: "info".into(),
        };
        let text = printed(|output| log_filters(std::slice::from_ref(&answer), true, output));
        assert_eq!(text, "server 2: debug (was info); goes back to info in 10 min\n");
        answer.reverts_at_unix_ms = None;
        let text = printed(|output| log_filters(&[answer], false, output));
        assert_eq!(text, "server 2: debug\n");
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
