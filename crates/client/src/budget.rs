//! What was spent and how the servers are, as each of them tells it.

use concilium_privacy::{Delta, NanoRho};
use concilium_rpc::v1::{
    GetBudgetRequest, GetBudgetResponse, GetStatusRequest, GetStatusResponse, TaskBudget,
    budget_client::BudgetClient,
};
use tonic::transport::Channel;

use crate::{
    connection::{CallError, Connection, ServerError},
    task::{delta, epsilon},
};

/// The servers that a question goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// All three.
    All,
    /// The one of this index, 0 to 2.
    One(u8),
}

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
            from_server(server, answer.party).map(|()| answer)
        }
    };
    match servers {
        Servers::All => connection.call_all("GetBudget", ask).await.into(),
        Servers::One(server) => {
            vec![connection.call(server, "GetBudget", |channel| ask(server, channel)).await]
        }
    }
}

/// Reads the state of servers, one result for each server asked; for operators.
pub async fn statuses(
    connection: &Connection,
    servers: Servers,
) -> Vec<Result<GetStatusResponse, ServerError>> {
    let ask = |server: u8, channel: Channel| async move {
        let answer = BudgetClient::new(channel).get_status(GetStatusRequest {}).await?.into_inner();
        from_server(server, answer.party).map(|()| answer)
    };
    match servers {
        Servers::All => connection.call_all("GetStatus", ask).await.into(),
        Servers::One(server) => {
            vec![connection.call(server, "GetStatus", |channel| ask(server, channel)).await]
        }
    }
}

fn from_server(server: u8, party: u32) -> Result<(), CallError> {
    if party == u32::from(server) {
        Ok(())
    } else {
        Err(CallError::Malformed(format!("an answer of server {party}")))
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
        if first.ledger_head_sequence != other.ledger_head_sequence {
            differences.push(format!(
                "{servers} have ledgers of {} and {} entries",
                first.ledger_head_sequence, other.ledger_head_sequence
            ));
        }
    }
    differences
}

fn fields(task: &TaskBudget) -> [(&'static str, String); 8] {
    let clients: Vec<_> =
        task.clients.iter().map(|client| format!("{}={}", client.client, client.spent_nano_rho)).collect();
    [
        ("epoch", task.epoch.to_string()),
        ("spent (nano-rho)", format!("{}", task.spent_nano_rho.unwrap_or_default())),
        ("cap (nano-rho)", task.cap_nano_rho.to_string()),
        ("cap per client (nano-rho)", format!("{:?}", task.cap_per_client_nano_rho)),
        ("cost per row (nano-rho)", task.cost_nano_rho_per_row.to_string()),
        ("requests", task.requests.to_string()),
        ("rows", task.rows.to_string()),
        ("clients", clients.join(" ")),
    ]
}

#[cfg(test)]
mod tests {
    use concilium_rpc::v1::ClientSpending;

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
                clients: vec![ClientSpending { client: "alice".into(), spent_nano_rho: 200_000_000 }],
                mechanism: "discrete Gaussian, sigma 5".into(),
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
        changed[1].ledger_head_sequence = 3;
        let told = differences(&changed).join("\n");
        assert!(told.contains("servers 0 and 2 say spent (nano-rho) 250000000 and 210000000"), "{told}");
        assert!(told.contains("alice=200000000 and alice=200000001"), "{told}");
        assert!(told.contains("servers 0 and 1 have ledgers of 4 and 3 entries"), "{told}");
        assert_eq!(told.lines().count(), 3);

        let mut changed = answers;
        changed[0].tasks.clear();
        let told = differences(&changed);
        assert_eq!(told, vec!["task digits: server 0 has no such task".to_owned(); 2]);
    }
}
