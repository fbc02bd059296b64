//! What was spent, as each server tells it.

use std::time::Duration;

use concilium_privacy::{Delta, NanoRho};
use concilium_rpc::v1::{
    ClientSpending, GetBudgetRequest, GetBudgetResponse, TaskBudget, budget_client::BudgetClient,
};
use tonic::transport::Channel;

use crate::{
    connection::{Connection, ServerError, most_useful},
    operations::{Servers, check_sender},
    task::{delta, epsilon},
    terminal::{Failure, FailureClass},
};

/// Reads what servers say was spent of `task`, or of all tasks without one; one result for each server
/// asked.
///
/// What a caller sees depends on its role: operators everything, clients their own spending, owners
/// totals.
pub async fn budgets(
    connection: &Connection,
    servers: Servers,
    task: Option<&str>,
) -> Vec<Result<GetBudgetResponse, ServerError>> {
    let request = GetBudgetRequest { task: task.unwrap_or_default().to_owned() };
    let ask = |server: u8, channel: Channel| {
        let request = request.clone();
        async move {
            let answer = BudgetClient::new(channel).get_budget(request).await?.into_inner();
            check_sender(server, answer.party).map(|()| answer)
        }
    };
    servers.ask(connection, "GetBudget", ask).await
}

/// Readings before a difference between the servers is believed: while a batch is charged, the
/// ledgers differ for a moment.
const READINGS: usize = 3;

/// Pause between readings.
const READING_PAUSE: Duration = Duration::from_millis(500);

/// What the servers asked say was spent.
#[derive(Debug, Default)]
pub struct Budgets {
    /// The servers' answers, in their order.
    pub answers: Vec<GetBudgetResponse>,
    /// Why there are no more of them.
    pub errors: Vec<ServerError>,
    /// What the servers still disagree about after some readings, in one line each.
    pub differences: Vec<String>,
}

impl Budgets {
    /// Reads as [`budgets`] does, and again while the servers differ, because a batch may be under way.
    pub async fn read(connection: &Connection, servers: Servers, task: Option<&str>) -> Self {
        let mut reading = 1;
        loop {
            let (mut answers, mut errors) = (Vec::new(), Vec::new());
            for result in budgets(connection, servers, task).await {
                match result {
                    Ok(answer) => answers.push(answer),
                    Err(error) => errors.push(error),
                }
            }
            let differences = differences(&answers);
            if differences.is_empty() || reading == READINGS {
                return Budgets { answers, errors, differences };
            }
            reading += 1;
            tokio::time::sleep(READING_PAUSE).await;
        }
    }

    /// What all three servers say.
    ///
    /// # Errors
    /// [`Failure`] if they disagree, or else of the servers' errors the one that says most about the cause.
    pub fn agreed(self) -> Result<Vec<TaskBudget>, Failure> {
        if let Some(difference) = self.differences.first() {
            return Err(Failure::message(
                FailureClass::Refused,
                format!("the servers disagree: {difference}; tell their operators"),
            ));
        }
        match most_useful(self.errors) {
            Some(error) => Err(error.into()),
            None => Ok(self.answers.into_iter().next().map(|answer| answer.tasks).unwrap_or_default()),
        }
    }
}

/// One task's budget on one server in the terms that people read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Spent within the caller's scope: by all clients for operators and owners, by itself for a
    /// client.
    pub spent: NanoRho,
    /// The cap that `spent` is compared with: of the task, or for a client its own if it has one.
    pub cap: NanoRho,
    /// Delta of the statement, if the server sent one between 0 and 1.
    pub delta: Option<Delta>,
    /// Epsilon of `spent` at `delta`, computed here; infinite without a delta.
    pub epsilon: f64,
    /// Epsilon of `cap` at `delta`, computed here; infinite without a delta.
    pub epsilon_cap: f64,
    /// What is left under the cap.
    pub left: NanoRho,
    /// Rows that this pays for.
    pub rows_left: u64,
}

impl Reading {
    /// Reads one task of a server's answer.
    pub fn new(task: &TaskBudget) -> Self {
        let own = || task.clients.iter().fold(0_u64, |sum, client| sum.saturating_add(client.spent_nano_rho));
        let (spent, cap) = match task.spent_nano_rho {
            Some(spent) => (spent, task.cap_nano_rho),
            // A client, which is not told what others have spent.
            None => (own(), task.cap_per_client_nano_rho.unwrap_or(task.cap_nano_rho)),
        };
        let (spent, cap, delta) = (NanoRho::new(spent), NanoRho::new(cap), delta(task.delta));
        let at_delta = |loss| delta.map_or(f64::INFINITY, |delta| epsilon(loss, delta));
        let left = cap.saturating_sub(spent);
        Self {
            spent,
            cap,
            delta,
            epsilon: at_delta(spent),
            epsilon_cap: at_delta(cap),
            left,
            rows_left: left.units().checked_div(task.cost_nano_rho_per_row).unwrap_or(u64::MAX),
        }
    }
}

/// Compares what the servers say and tells every difference in one line each; empty when they agree.
///
/// Each server keeps its own ledger. While a batch is under way the figures differ for moments;
/// differences that stay mean that a server is faulty or was restored from an old copy.
pub fn differences(answers: &[GetBudgetResponse]) -> Vec<String> {
    let mut differences = Vec::new();
    let Some((first, others)) = answers.split_first() else { return differences };
    for other in others {
        let servers = format!("servers {} and {}", first.party, other.party);
        for task in &first.tasks {
            match other.tasks.iter().find(|candidate| candidate.task == task.task) {
                None => {
                    differences.push(format!("task {}: server {} has no such task", task.task, other.party))
                }
                Some(copy) => {
                    for ((field, here), (_, there)) in fields(task).into_iter().zip(fields(copy)) {
                        if here != there {
                            differences.push(format!(
                                "task {}: {servers} say {field} {here} and {there}",
                                task.task
                            ));
                        }
                    }
                }
            }
        }
        for task in &other.tasks {
            if first.tasks.iter().all(|candidate| candidate.task != task.task) {
                differences.push(format!("task {}: server {} has no such task", task.task, first.party));
            }
        }
    }
    differences
}

fn fields(task: &TaskBudget) -> [(&'static str, String); 12] {
    let clients = |spent: fn(&ClientSpending) -> u64| {
        let clients: Vec<_> =
            task.clients.iter().map(|client| format!("{}={}", client.client, spent(client))).collect();
        clients.join(" ")
    };
    let owners: Vec<_> = task
        .owners
        .iter()
        .map(|owner| format!("{}={} of {}", owner.owner, owner.spent_nano_rho, owner.cap_nano_rho))
        .collect();
    // What a window holds depends on each server's clock.
    let window = task.window.map(|window| (window.cap_nano_rho, window.seconds));
    [
        ("epoch", task.epoch.to_string()),
        ("spent (nano-rho)", format!("{}", task.spent_nano_rho.unwrap_or_default())),
        ("cap (nano-rho)", task.cap_nano_rho.to_string()),
        ("cap per client (nano-rho)", format!("{:?}", task.cap_per_client_nano_rho)),
        ("cost per row (nano-rho)", task.cost_nano_rho_per_row.to_string()),
        ("requests", task.requests.to_string()),
        ("rows", task.rows.to_string()),
        ("clients", clients(|client| client.spent_nano_rho)),
        ("clients over all tasks (nano-rho)", clients(|client| client.spent_all_tasks_nano_rho)),
        ("owners (nano-rho)", owners.join(" ")),
        ("window (nano-rho, seconds)", format!("{window:?}")),
        ("epoch begun as", format!("{} {}", task.epoch_basis().as_str_name(), task.epoch_attested_by)),
    ]
}

#[cfg(test)]
mod tests {
    use concilium_rpc::v1::OwnerBudget;

    use super::*;

    fn answer(party: u32) -> GetBudgetResponse {
        GetBudgetResponse {
            party,
            tasks: vec![TaskBudget {
                task: "digits".into(),
                epoch: 1,
                spent_nano_rho: Some(250_000_000),
                cap_nano_rho: 1_000_000_000,
                cap_per_client_nano_rho: Some(500_000_000),
                cost_nano_rho_per_row: 40_000_001,
                delta: 1e-5,
                spent_epsilon: 3.5,
                requests: 3,
                rows: 6,
                clients: vec![ClientSpending {
                    client: "alice".into(),
                    spent_nano_rho: 200_000_000,
                    spent_all_tasks_nano_rho: 300_000_000,
                }],
                mechanism: "discrete Gaussian, sigma 5".into(),
                owners: vec![OwnerBudget {
                    owner: "ward-7".into(),
                    cap_nano_rho: 500_000_000,
                    spent_nano_rho: 250_000_000,
                }],
                ..TaskBudget::default()
            }],
            ledger_head_sequence: 4,
            ledger_head_hash: vec![1; 32].into(),
        }
    }

    #[test]
    fn readings_depend_on_the_scope() {
        let mut task = answer(0).tasks.remove(0);
        let all = Reading::new(&task);
        assert_eq!((all.spent, all.left), (NanoRho::new(250_000_000), NanoRho::new(750_000_000)));
        assert_eq!(all.rows_left, 18);
        assert!(all.epsilon > 2.0 && all.epsilon < 5.0, "{}", all.epsilon);
        assert!(all.epsilon_cap > all.epsilon);
        task.spent_nano_rho = None;
        let own = Reading::new(&task);
        assert_eq!((own.spent, own.cap), (NanoRho::new(200_000_000), NanoRho::new(500_000_000)));
        assert_eq!(own.rows_left, 7);
        task.delta = f64::NAN;
        task.cost_nano_rho_per_row = 0;
        let odd = Reading::new(&task);
        assert_eq!((odd.delta, odd.epsilon, odd.rows_left), (None, f64::INFINITY, u64::MAX));
    }

    #[test]
    fn every_difference_is_told() {
        let answers = [answer(0), answer(1), answer(2)];
        assert!(differences(&answers).is_empty());
        assert!(differences(&[]).is_empty());

        let mut changed = answers.clone();
        changed[2].tasks[0].spent_nano_rho = Some(210_000_000);
        changed[2].tasks[0].clients[0].spent_nano_rho += 1;
        let told = differences(&changed).join("\n");
        assert!(told.contains("servers 0 and 2 say spent (nano-rho) 250000000 and 210000000"), "{told}");
        assert!(told.contains("alice=200000000 and alice=200000001"), "{told}");
        assert_eq!(told.lines().count(), 2);
        // After a crash between two servers' commits the totals are made equal, and the logs stay different.
        changed = answers.clone();
        changed[1].tasks[0].owners[0].spent_nano_rho += 1;
        changed[2].tasks[0].clients[0].spent_all_tasks_nano_rho += 1;
        changed[2].tasks[0].epoch_attested_by = "Ann".into();
        let told = differences(&changed).join("\n");
        assert!(told.contains("ward-7=250000000 of 500000000 and ward-7=250000001"), "{told}");
        assert!(told.contains("clients over all tasks (nano-rho) alice=300000000"), "{told}");
        assert!(told.contains("say epoch begun as ") && told.contains("Ann"), "{told}");
        assert_eq!(told.lines().count(), 3, "{told}");
        changed = answers.clone();
        changed[1].ledger_head_sequence = 3;
        assert!(differences(&changed).is_empty());

        let mut changed = answers;
        changed[0].tasks.clear();
        let told = differences(&changed);
        assert_eq!(told, vec!["task digits: server 0 has no such task".to_owned(); 2]);
    }
}
