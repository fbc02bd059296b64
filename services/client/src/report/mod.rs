//! What the program prints and writes about answers and tasks.

use concilium_client_library::{
    Task,
    answer::{CallerBudget, Released},
    confidence::{Confidence, RowConfidence},
    predict::RequestAnswer,
    probabilities::ProbabilitySums,
    task::describe_mechanism,
};
use concilium_privacy::NanoRho;
use concilium_rpc::v1::caller_budget::Scope;
use ndarray::Array2;
use serde::Serialize;

use crate::{receipt::StoredReceipt, selection::Selection};

mod print;

pub use print::tasks;

/// Stands in the place of a label.
const NO_CONSENSUS: &str = "no consensus";

/// Everything about one prediction; the JSON file holds it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the task.
    pub task: String,
    /// Epoch of the task.
    pub epoch: u64,
    /// `label` or `histogram`.
    pub release: &'static str,
    /// The noise that any two servers' shares guarantee.
    pub mechanism: String,
    /// Position of the first row in the input file.
    pub first_row: usize,
    /// Label of each row: the released one, or the class of the largest noisy count; `null` for a row
    /// without consensus.
    pub labels: Vec<Option<usize>>,
    /// Why rows have no label, when labels have a threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consensus: Option<Consensus>,
    /// How sure each row of a histogram makes its label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<Vec<RowReport>>,
    /// Noisy counts of each row, when they are released.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histograms: Option<Vec<Vec<i64>>>,
    /// Noisy mean probabilities of each row, when they are released: unbiased, and possibly outside of
    /// 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_probabilities: Option<Vec<Vec<f64>>>,
    /// The distribution nearest to each row of them, which is biased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest_distributions: Option<Vec<Vec<f64>>>,
    /// Part of the rows with a label whose label is the true one, when true labels were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Charged for all requests, in rho.
    pub charged_rho: String,
    /// Spent by this client in this epoch, in rho.
    pub caller_spent_rho: String,
    /// Epsilon of it at `delta`.
    pub caller_spent_epsilon: f64,
    /// Delta of the task.
    pub delta: String,
    /// What is left of each cap that binds this client.
    pub caller_budgets: Vec<BudgetReport>,
    /// One entry for each request.
    pub requests: Vec<RequestReport>,
}

/// A cap that binds this client.
#[derive(Clone, Debug, Serialize)]
pub struct BudgetReport {
    /// `task epoch`, `all tasks` or `window`.
    pub scope: &'static str,
    /// The cap, in rho.
    pub cap_rho: String,
    /// What is left under it, in rho.
    pub left_rho: String,
}

impl BudgetReport {
    fn new(budget: &CallerBudget) -> Self {
        Self {
            scope: match budget.scope {
                Scope::TaskEpoch => "task epoch",
                Scope::AllTasks => "all tasks",
                Scope::Window => "window",
                Scope::Unspecified => "unknown",
            },
            cap_rho: budget.cap.to_string(),
            left_rho: budget.left.to_string(),
        }
    }
}

/// What a threshold made of the rows.
#[derive(Clone, Debug, Serialize)]
pub struct Consensus {
    /// Noisy votes that the most frequent class needed.
    pub votes: u32,
    /// The noise of the test that any two servers' shares guarantee.
    pub mechanism: String,
    /// Rows that have a label.
    pub consenting_rows: usize,
    /// Rows without consensus, which were charged for the test only.
    pub rows_without: usize,
    /// Price of the test of one row, in rho.
    pub test_rho: String,
    /// Price of the answer of one row, in rho.
    pub answer_rho: String,
}

impl Consensus {
    fn new(task: &Task, labels: &[Option<usize>]) -> Option<Self> {
        let threshold = task.threshold?;
        let prices = task.policy().row_prices().ok()?;
        let consenting_rows = labels.iter().flatten().count();
        Some(Self {
            votes: threshold.votes,
            mechanism: describe_mechanism(threshold.mechanism),
            consenting_rows,
            rows_without: labels.len() - consenting_rows,
            test_rho: prices.threshold.to_string(),
            answer_rho: prices.answer.to_string(),
        })
    }
}

/// What one row of noisy counts says about the true ones.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RowReport {
    /// Noisy count of the label less that of the runner-up, in votes.
    pub margin: i64,
    /// Probability, over the noise, of no wrong label with such a margin; a lower bound.
    pub plurality_probability: f64,
    /// Interval of the true margin, in votes, that misses with a probability of 5 % at most.
    pub lead: (i64, i64),
}

/// How sure the noisy counts make each row's label.
fn confidence(task: &Task, answers: &[RequestAnswer]) -> Option<Vec<RowReport>> {
    let confidence = Confidence::new(task.mechanism, task.classes)?;
    let mut rows = Vec::new();
    for answer in answers {
        let Released::Histograms(counts) = &answer.released else { return None };
        rows.extend(counts.outer_iter().map(|row| {
            let RowConfidence { margin, plurality, lead, .. } = confidence.of_row(row, answer.receipt.models);
            RowReport { margin, plurality_probability: plurality, lead }
        }));
    }
    Some(rows)
}

/// One request of a prediction.
#[derive(Clone, Debug, Serialize)]
pub struct RequestReport {
    /// The id, in hexadecimal.
    pub request_id: String,
    /// Rows of the request.
    pub rows: usize,
    /// Models that voted.
    pub models: u32,
    /// Owners of these models.
    pub owners: u32,
    /// Digest of the set of models, in hexadecimal.
    pub model_set_digest: String,
    /// Charged, in rho.
    pub charged_rho: String,
    /// Epsilon of the charge at the task's delta.
    pub charged_epsilon: f64,
    /// Standard deviation of the noise on each count, in votes.
    pub noise_standard_deviation: f64,
    /// Attempts made.
    pub attempts: u32,
    /// Whether the servers sent stored bytes of an earlier attempt.
    pub replayed: bool,
    /// Encoding and sharing, in milliseconds.
    pub sharing_ms: f64,
    /// From the first byte sent to the opened answer, in milliseconds.
    pub latency_ms: f64,
    /// Rounds of the protocol.
    pub rounds: u64,
    /// Evaluation on servers 0, 1, 2, in milliseconds.
    pub server_ms: [f64; 3],
    /// Protocol bytes that servers 0, 1, 2 sent, of the whole batch.
    pub bytes_sent: [u64; 3],
    /// The receipts of servers 0, 1, 2 with their signatures, for `concilium-client receipt verify`.
    pub receipts: [StoredReceipt; 3],
}

impl RequestReport {
    fn new(answer: &RequestAnswer) -> Self {
        let receipt = &answer.receipt;
        Self {
            request_id: hex::encode(receipt.request_id),
            rows: answer.rows.len(),
            models: receipt.models,
            owners: receipt.owners,
            model_set_digest: hex::encode(receipt.model_set_digest),
            charged_rho: receipt.charged.to_string(),
            charged_epsilon: receipt.charged_epsilon,
            noise_standard_deviation: receipt.noise_standard_deviation,
            attempts: answer.attempts,
            replayed: receipt.replayed,
            sharing_ms: answer.timing.sharing.as_secs_f64() * 1e3,
            latency_ms: answer.timing.latency.as_secs_f64() * 1e3,
            rounds: receipt.statistics.iter().map(|server| server.rounds).max().unwrap_or(0),
            server_ms: receipt.statistics.map(|server| server.server_microseconds as f64 / 1e3),
            bytes_sent: receipt.statistics.map(|server| server.bytes_sent),
            receipts: receipt.signed.each_ref().map(StoredReceipt::new),
        }
    }
}

impl Report {
    /// Reports on answered requests, of which there is at least one.
    pub fn new(task: &Task, selection: &Selection, answers: &[RequestAnswer]) -> Self {
        let labels: Vec<Option<usize>> = answers.iter().flat_map(|answer| answer.released.labels()).collect();
        let histograms: Vec<Vec<i64>> = answers
            .iter()
            .filter_map(|answer| match &answer.released {
                Released::Histograms(counts) => Some(counts.outer_iter().map(|row| row.to_vec())),
                _ => None,
            })
            .flatten()
            .collect();
        let probabilities = |values: fn(&ProbabilitySums) -> Array2<f64>| -> Option<Vec<Vec<f64>>> {
            let rows: Vec<Vec<f64>> = answers
                .iter()
                .filter_map(|answer| match &answer.released {
                    Released::Probabilities(sums) => Some(values(sums)),
                    _ => None,
                })
                .flat_map(|values| values.outer_iter().map(|row| row.to_vec()).collect::<Vec<_>>())
                .collect();
            (!rows.is_empty()).then_some(rows)
        };
        let accuracy = selection.labels.as_ref().and_then(|truth| {
            let answered =
                labels.iter().zip(truth).filter_map(|(label, truth)| Some((label.as_ref()?, truth)));
            let (right, all) = answered.fold((0_usize, 0_usize), |(right, all), (label, truth)| {
                (right + usize::from(label == truth), all + 1)
            });
            (all > 0).then_some(right as f64 / all as f64)
        });
        let charged =
            answers.iter().try_fold(NanoRho::ZERO, |sum, answer| sum.checked_add(answer.receipt.charged));
        let spent =
            answers.iter().map(|answer| answer.receipt.caller_spent).max().unwrap_or(task.caller_spent);
        // Answers come one after the other: the last knows of all.
        let budgets = answers.last().map_or(&[][..], |answer| &answer.receipt.caller_budgets);
        let budgets = budgets.iter().map(BudgetReport::new).collect();
        Self {
            task: task.name.clone(),
            epoch: task.epoch,
            release: task.release.name(),
            mechanism: describe_mechanism(task.mechanism),
            first_row: selection.first,
            consensus: Consensus::new(task, &labels),
            confidence: confidence(task, answers),
            labels,
            histograms: (!histograms.is_empty()).then_some(histograms),
            mean_probabilities: probabilities(ProbabilitySums::means),
            nearest_distributions: probabilities(ProbabilitySums::distributions),
            accuracy,
            charged_rho: charged.map_or_else(|| "more than can be counted".to_owned(), |sum| sum.to_string()),
            caller_spent_rho: spent.to_string(),
            caller_spent_epsilon: task.epsilon(spent),
            delta: task.delta.to_string(),
            caller_budgets: budgets,
            requests: answers.iter().map(RequestReport::new).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
