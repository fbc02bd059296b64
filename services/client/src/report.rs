//! What the program prints and writes about answers and tasks.

use std::io::Write;

use concilium_client_library::{
    Task,
    answer::{Released, winner},
    predict::RequestAnswer,
    task::{describe_mechanism, describe_release},
    terminal::{Failure, Output},
};
use concilium_privacy::NanoRho;
use ndarray::ArrayView1;
use serde::Serialize;

use crate::selection::Selection;

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
    /// Label of each row: the released one, or the class of the largest noisy count.
    pub labels: Vec<usize>,
    /// Noisy counts of each row, when they are released.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histograms: Option<Vec<Vec<i64>>>,
    /// Part of the rows whose label is the true one, when true labels were given.
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
    /// Left to this client, in rho, if it has a cap of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller_left_rho: Option<String>,
    /// One entry for each request.
    pub requests: Vec<RequestReport>,
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
            attempts: answer.attempts,
            replayed: receipt.replayed,
            sharing_ms: answer.timing.sharing.as_secs_f64() * 1e3,
            latency_ms: answer.timing.latency.as_secs_f64() * 1e3,
            rounds: receipt.statistics.iter().map(|server| server.rounds).max().unwrap_or(0),
            server_ms: receipt.statistics.map(|server| server.server_microseconds as f64 / 1e3),
            bytes_sent: receipt.statistics.map(|server| server.bytes_sent),
        }
    }
}

impl Report {
    /// Reports on answered requests, of which there is at least one.
    pub fn new(task: &Task, selection: &Selection, answers: &[RequestAnswer]) -> Self {
        let labels: Vec<usize> = answers.iter().flat_map(|answer| answer.released.labels()).collect();
        let histograms: Vec<Vec<i64>> = answers
            .iter()
            .filter_map(|answer| match &answer.released {
                Released::Histograms(counts) => Some(counts.outer_iter().map(|row| row.to_vec())),
                Released::Labels(_) => None,
            })
            .flatten()
            .collect();
        let accuracy = selection.labels.as_ref().map(|truth| {
            let right = labels.iter().zip(truth).filter(|(label, truth)| label == truth).count();
            right as f64 / labels.len() as f64
        });
        let charged =
            answers.iter().try_fold(NanoRho::ZERO, |sum, answer| sum.checked_add(answer.receipt.charged));
        let spent =
            answers.iter().map(|answer| answer.receipt.caller_spent).max().unwrap_or(task.caller_spent);
        Self {
            task: task.name.clone(),
            epoch: task.epoch,
            release: describe_release(task.release),
            mechanism: describe_mechanism(task.mechanism),
            first_row: selection.first,
            labels,
            histograms: (!histograms.is_empty()).then_some(histograms),
            accuracy,
            charged_rho: charged.map_or_else(|| "more than can be counted".to_owned(), |sum| sum.to_string()),
            caller_spent_rho: spent.to_string(),
            caller_spent_epsilon: task.epsilon(spent),
            delta: task.delta.to_string(),
            caller_left_rho: task.caller_cap.map(|cap| cap.saturating_sub(spent).to_string()),
            requests: answers.iter().map(RequestReport::new).collect(),
        }
    }

    /// Prints one line for each row: its label and, for histograms, margin and counts.
    ///
    /// # Errors
    /// [`Failure`] if standard output is closed.
    pub fn table(&self, task: &Task, output: &mut Output<impl Write>) -> Result<(), Failure> {
        let mut header = vec!["row".to_owned(), "label".to_owned()];
        if self.histograms.is_some() {
            header.push("margin".to_owned());
            header.extend((0..task.classes).map(|class| task.class_name(class)));
        }
        let mut rows = vec![header];
        for (position, label) in self.labels.iter().enumerate() {
            let mut row = vec![(self.first_row + position).to_string(), task.class_name(*label)];
            if let Some(counts) = self.histograms.as_ref().and_then(|histograms| histograms.get(position)) {
                row.push(winner(ArrayView1::from(counts.as_slice())).margin.to_string());
                row.extend(counts.iter().map(i64::to_string));
            }
            rows.push(row);
        }
        output.table(&rows)
    }

    /// Prints the accuracy, what was computed and what it cost.
    ///
    /// # Errors
    /// [`Failure`] if standard output is closed.
    pub fn receipt(&self, task: &Task, output: &mut Output<impl Write>) -> Result<(), Failure> {
        output.line("")?;
        if let Some(accuracy) = self.accuracy {
            output.line(format_args!(
                "accuracy   {:.2} % of {} rows",
                100.0 * accuracy,
                self.labels.len()
            ))?;
        }
        output.line(format_args!("task       {} (epoch {})", self.task, self.epoch))?;
        output.line(format_args!("released   {}, {}", self.release, self.mechanism))?;
        if let Some(last) = self.requests.last() {
            output.line(format_args!(
                "voted      {} models of {} owners, set {}",
                last.models,
                last.owners,
                &last.model_set_digest[..16]
            ))?;
        }
        output.line(format_args!("charged    rho {}", self.charged_rho))?;
        output.line(format_args!(
            "spent      rho {}, epsilon {:.3} at delta {}",
            self.caller_spent_rho, self.caller_spent_epsilon, self.delta
        ))?;
        match &self.caller_left_rho {
            Some(left) => output.line(format_args!(
                "left       rho {left} of rho {} for this client",
                task.caller_cap.unwrap_or(task.task_cap)
            ))?,
            None => output.line(format_args!("cap        rho {} for all clients together", task.task_cap))?,
        }
        let latencies: Vec<f64> = self.requests.iter().map(|request| request.latency_ms).collect();
        let mean = latencies.iter().sum::<f64>() / latencies.len().max(1) as f64;
        let most = latencies.iter().copied().fold(0.0, f64::max);
        let rounds = self.requests.iter().map(|request| request.rounds).max().unwrap_or(0);
        output.line(format_args!(
            "requests   {}, {mean:.1} ms on average, {most:.1} ms at most, {rounds} rounds",
            self.requests.len()
        ))
    }
}

/// Prints the tasks, one line each.
///
/// # Errors
/// [`Failure`] if standard output is closed.
pub fn tasks(tasks: &[Task], output: &mut Output<impl Write>) -> Result<(), Failure> {
    let header = [
        "task",
        "epoch",
        "input",
        "classes",
        "release",
        "noise",
        "owners",
        "models",
        "rho/row",
        "left",
        "rows left",
        "rows/request",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for task in tasks {
        let unlimited = || "-".to_owned();
        rows.push(vec![
            task.name.clone(),
            task.epoch.to_string(),
            format!("{:?}", task.domain.shape()),
            task.classes.to_string(),
            describe_release(task.release).to_owned(),
            describe_mechanism(task.mechanism),
            task.owners_ready.to_string(),
            task.models_ready.to_string(),
            task.cost_per_row.to_string(),
            task.caller_left().map_or_else(unlimited, |left| left.to_string()),
            task.rows_left().map_or_else(unlimited, |rows| rows.to_string()),
            task.max_rows_per_request.to_string(),
        ]);
    }
    output.table(&rows)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use concilium_client_library::{answer::Receipt, predict::Timing};
    use concilium_network::InputDomain;
    use concilium_privacy::{Mechanism, NoiseScale, Release};
    use concilium_rpc::v1::EvaluationStatistics;
    use ndarray::{Array2, array};

    use super::*;

    fn task(release: Release) -> Task {
        Task {
            name: "pets".into(),
            epoch: 2,
            domain: InputDomain::new(vec![2], vec![0.0], vec![1.0]).unwrap(),
            fractional_bits: 12,
            classes: 2,
            class_names: vec!["cat".into(), "dog".into()],
            release,
            mechanism: Mechanism::DiscreteGaussian { sigma: NoiseScale::from_millionths(5_000_000) },
            cost_per_row: NanoRho::new(40_000_001),
            policy_digest: [1; 32],
            owners_ready: 10,
            models_ready: 10,
            max_rows_per_request: 2,
            delta: "1e-5".parse().unwrap(),
            caller_spent: NanoRho::ZERO,
            caller_cap: Some(NanoRho::new(1_000_000_000)),
            task_cap: NanoRho::new(2_000_000_000),
        }
    }

    fn answer(task: &Task, rows: std::ops::Range<usize>, released: Released) -> RequestAnswer {
        let count = rows.len() as u32;
        let receipt = Receipt {
            task: task.name.clone(),
            epoch: task.epoch,
            request_id: [3; 16],
            release: task.release,
            rows: count,
            classes: task.classes,
            mechanism: task.mechanism,
            charged: task.cost_per_row.checked_mul(count.into()).unwrap(),
            caller_spent: task.cost_per_row.checked_mul(rows.end as u64).unwrap(),
            caller_cap: task.caller_cap,
            models: 10,
            owners: 10,
            model_set_digest: [0xab; 32],
            replayed: false,
            statistics: [0, 1, 2].map(|server| EvaluationStatistics {
                server_microseconds: 1_500,
                rounds: 20,
                bytes_sent: 100 + server,
                batch_rows: count,
            }),
        };
        let timing = Timing { sharing: Duration::from_millis(1), latency: Duration::from_millis(40) };
        RequestAnswer { rows, released, receipt, timing, attempts: 1 }
    }

    fn selection() -> Selection {
        Selection { first: 7, rows: Array2::zeros((3, 2)), labels: Some(vec![0, 1, 1]) }
    }

    fn printed(print: impl FnOnce(&mut Output<&mut Vec<u8>>) -> Result<(), Failure>) -> String {
        let mut bytes = Vec::new();
        print(&mut Output::new(&mut bytes)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn histograms_are_printed_with_margin_and_counts() {
        let task = task(Release::Histogram);
        let answers = [
            answer(&task, 0..2, Released::Histograms(array![[9, -2], [4, 4]])),
            answer(&task, 2..3, Released::Histograms(array![[0, 11]])),
        ];
        let report = Report::new(&task, &selection(), &answers);
        let table = printed(|output| report.table(&task, output));
        let expected = "row  label  margin  cat  dog\n7      cat      11    9   -2\n8      cat       0    4    4\n9      dog      11    0   11\n";
        assert_eq!(table, expected);
        let receipt = printed(|output| report.receipt(&task, output));
        for needle in
            ["66.67 % of 3", "rho 0.120000003", "rho 0.879999997", "10 models of 10 owners", "20 rounds"]
        {
            assert!(receipt.contains(needle), "{needle}: {receipt}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["histograms"], serde_json::json!([[9, -2], [4, 4], [0, 11]]));
        assert_eq!(json["labels"], serde_json::json!([0, 0, 1]));
        assert_eq!(json["requests"][1]["bytes_sent"], serde_json::json!([100, 101, 102]));
    }

    #[test]
    fn labels_are_printed_without_counts() {
        let task = task(Release::Label);
        let answers = [answer(&task, 0..3, Released::Labels(vec![1, 0, 1]))];
        let report = Report::new(&task, &Selection { labels: None, ..selection() }, &answers);
        assert_eq!(
            printed(|output| report.table(&task, output)),
            "row  label\n7      dog\n8      cat\n9      dog\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert!(json.get("histograms").is_none() && json.get("accuracy").is_none());
    }

    #[test]
    fn tasks_show_what_is_left() {
        let shared = Task { caller_cap: None, name: "other".into(), ..task(Release::Label) };
        let text = printed(|output| tasks(&[task(Release::Histogram), shared], output));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("pets") && lines[1].contains("24"), "{text}");
        assert!(lines[2].starts_with("other") && lines[2].contains('-'), "{text}");
    }
}
