//! What a demonstration found, as text and as JSON.

use std::io::Write;

use concilium_client_library::terminal::{Failure, Output};
use concilium_privacy::{Mechanism, Release, convert};
use serde::Serialize;

use crate::figures::SingleOwners;
use crate::simulation::Agreement;

/// Below this predicted agreement with the plaintext majority the noise is said to drown the votes.
const DROWNED_BELOW: f64 = 0.75;

/// Every figure of one demonstration. Accuracies and agreements are parts of the queries, 0 to 1;
/// those that need the right classes are absent without them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the task.
    pub task: String,
    /// Owners whose models voted.
    pub owners: usize,
    /// Number of classes.
    pub classes: usize,
    /// Rows that were predicted.
    pub queries: usize,
    /// Most rows of one request.
    pub batch: usize,
    /// Requests that were sent.
    pub requests: usize,
    /// What the client got for each query.
    pub release: Release,
    /// `discrete_gaussian` or `discrete_laplace`.
    pub mechanism: &'static str,
    /// Standard deviation of the discrete Gaussian that any two servers guarantee, in votes.
    pub sigma: Option<f64>,
    /// Scale of the discrete Laplace that any two servers guarantee, in votes.
    pub scale: Option<f64>,
    /// Standard deviation of the noise of all three servers on each count, in votes.
    pub noise_standard_deviation: f64,
    /// Fractional bits of the fixed-point numbers.
    pub fractional_bits: u32,
    /// The label of each query: the released one, or the class of the largest noisy count.
    pub labels: Vec<usize>,
    /// The noisy counts of each query, when they are released.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histograms: Option<Vec<Vec<i64>>>,
    /// The class with the most plaintext votes of each query.
    pub plaintext_labels: Vec<usize>,
    /// Accuracy of `labels`.
    pub accuracy: Option<f64>,
    /// Accuracy that the same noise on the plaintext votes gives, from `simulation`.
    pub simulated_accuracy: Option<f64>,
    /// Accuracy of `plaintext_labels`.
    pub plaintext_accuracy: Option<f64>,
    /// Mean accuracy of single owners' models.
    pub single_owner_accuracy: Option<f64>,
    /// Accuracies of the worst and of the best owner's model.
    pub single_owner_accuracy_range: Option<[f64; 2]>,
    /// How often `labels` are `plaintext_labels`, and how often the noise makes them so.
    pub agreement: Agreement,
    /// The plaintext simulation of the noise.
    pub simulation: SimulationFigures,
    /// Time from sending a request to its opened answer.
    pub latency_ms: Latency,
    /// Queries answered in each second of the time in which requests were sent.
    pub queries_per_second: f64,
    /// Sequential exchanges of the protocol for one request, the most that any needed.
    pub rounds: u64,
    /// Protocol bytes that servers 0, 1 and 2 sent to the two others for one query: a batch's bytes,
    /// as in the receipts, divided by its rows, rounded up.
    pub bytes_per_query: [u64; 3],
    /// What servers 0, 1 and 2 have written to their ledgers.
    pub spent: [Spent; 3],
    /// Seconds from the start of the servers to the last model that was ready.
    pub sharing_seconds: f64,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// A plaintext simulation.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SimulationFigures {
    /// Simulations of each query.
    pub repeats: usize,
    /// Seed of the simulated noise.
    pub seed: u64,
}

/// Latency of requests in milliseconds, nearest-rank percentiles.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
}

/// What one server's ledger says is spent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spent {
    /// Loss under zero-concentrated differential privacy.
    pub rho: f64,
    /// Epsilon of it at `delta`, an upper bound.
    pub epsilon: f64,
    /// Delta of the statement.
    pub delta: f64,
}

/// Name and parameter of a mechanism for the report: name, sigma, scale.
pub(crate) fn describe(mechanism: Mechanism) -> (&'static str, Option<f64>, Option<f64>) {
    match mechanism {
        Mechanism::DiscreteGaussian { sigma } => ("discrete_gaussian", Some(convert::votes(sigma)), None),
        Mechanism::DiscreteLaplace { scale } => ("discrete_laplace", None, Some(convert::votes(scale))),
        _ => ("other", None, None),
    }
}

impl Report {
    /// Fills in the figures of single owners.
    pub(crate) fn set_single_owners(&mut self, single: Option<SingleOwners>) {
        self.single_owner_accuracy = single.map(|single| single.mean);
        self.single_owner_accuracy_range = single.map(|single| [single.minimum, single.maximum]);
    }

    /// Adds a note when the noise leaves little of the votes.
    pub(crate) fn note_drowned_votes(&mut self) {
        let predicted = self.agreement.predicted;
        if predicted >= DROWNED_BELOW {
            return;
        }
        self.notes.push(format!(
            "{} owners are few for {}: noise with a standard deviation of {:.1} votes on each count drowns \
             the votes, and {} of the labels can be expected to be the plaintext majority; take more owners \
             or less noise",
            self.owners,
            self.noise(),
            self.noise_standard_deviation,
            percent(predicted),
        ));
    }

    fn noise(&self) -> String {
        let parameter = |name: &str, value: Option<f64>| value.map(|value| format!("{name} {value}"));
        parameter("sigma", self.sigma).or(parameter("Laplace scale", self.scale)).unwrap_or_default()
    }

    /// Writes the report as aligned text.
    ///
    /// # Errors
    /// [`Failure`] if it can't be written.
    pub fn print<W: Write>(&self, output: &mut Output<W>) -> Result<(), Failure> {
        output.line(format_args!(
            "Task {}: {} owners, {} classes, {} queries in {} requests of up to {} rows",
            self.task, self.owners, self.classes, self.queries, self.requests, self.batch
        ))?;
        let released = if self.release == Release::Histogram { "noisy histograms" } else { "labels" };
        output.line(format_args!(
            "Released: {released}, with noise of {} that any two servers guarantee; the standard deviation \
             of all three is {:.2} votes",
            self.noise(),
            self.noise_standard_deviation
        ))?;
        for (title, figures) in self.sections() {
            output.line(format_args!("\n{title}"))?;
            let names = figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
            let values = figures.iter().map(|figure| figure.value.chars().count()).max().unwrap_or(0);
            for Figure { name, value, comment } in figures {
                let line = format!("  {name:<names$}  {value:>values$}  {comment}");
                output.line(line.trim_end())?;
            }
        }
        output.line("\nSent and spent by each server")?;
        output.table(&self.servers())?;
        if !self.notes.is_empty() {
            output.line("")?;
        }
        for note in &self.notes {
            output.line(format_args!("Note: {note}."))?;
        }
        Ok(())
    }

    fn sections(&self) -> [(&'static str, Vec<Figure>); 3] {
        let optional = |value: Option<f64>| value.map_or_else(|| "no labels given".to_owned(), percent);
        let range = self.single_owner_accuracy_range.map_or_else(String::new, |[minimum, maximum]| {
            format!("({} .. {})", percent(minimum), percent(maximum))
        });
        let repeats = format!("({} simulations of each query)", self.simulation.repeats);
        let test = format!("(z = {:.2}, p = {:.3})", self.agreement.z, self.agreement.p_value);
        let latency = |milliseconds: f64| format!("{milliseconds:.1} ms");
        [
            (
                "Accuracy",
                vec![
                    Figure::new("noisy labels", optional(self.accuracy)),
                    Figure::new("same noise in plaintext", optional(self.simulated_accuracy)).with(repeats),
                    Figure::new("plaintext majority", optional(self.plaintext_accuracy)),
                    Figure::new("single owner, mean", optional(self.single_owner_accuracy)).with(range),
                ],
            ),
            (
                "Agreement with the plaintext majority",
                vec![
                    Figure::new("noisy labels", percent(self.agreement.observed)),
                    Figure::new("predicted by the noise", percent(self.agreement.predicted)).with(test),
                ],
            ),
            (
                "Cost",
                vec![
                    Figure::new("latency of a request, p50", latency(self.latency_ms.p50)),
                    Figure::new("latency of a request, p95", latency(self.latency_ms.p95)),
                    Figure::new("queries per second", format!("{:.1}", self.queries_per_second)),
                    Figure::new("rounds", self.rounds.to_string()),
                ],
            ),
        ]
    }

    /// The table of what each server sent and spent.
    fn servers(&self) -> Vec<Vec<String>> {
        let mut rows =
            vec![["  server", "bytes per query", "rho", "epsilon", "delta"].map(str::to_owned).to_vec()];
        for (server, (bytes, spent)) in self.bytes_per_query.iter().zip(&self.spent).enumerate() {
            rows.push(vec![
                format!("  {server}"),
                bytes.to_string(),
                format!("{:.9}", spent.rho),
                format!("{:.4}", spent.epsilon),
                format!("{:e}", spent.delta),
            ]);
        }
        rows
    }
}

/// One line of a section.
struct Figure {
    name: &'static str,
    value: String,
    comment: String,
}

impl Figure {
    fn new(name: &'static str, value: String) -> Self {
        Figure { name, value, comment: String::new() }
    }

    fn with(self, comment: String) -> Self {
        Figure { comment, ..self }
    }
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn report() -> Report {
        Report {
            task: "digits".into(),
            owners: 10,
            classes: 3,
            queries: 2,
            batch: 2,
            requests: 1,
            release: Release::Label,
            mechanism: "discrete_gaussian",
            sigma: Some(2.5),
            scale: None,
            noise_standard_deviation: 3.06,
            fractional_bits: 14,
            labels: vec![1, 2],
            histograms: None,
            plaintext_labels: vec![1, 1],
            accuracy: Some(0.5),
            simulated_accuracy: Some(0.625),
            plaintext_accuracy: Some(1.0),
            single_owner_accuracy: None,
            single_owner_accuracy_range: None,
            agreement: Agreement { observed: 0.5, predicted: 0.75, z: -0.8, p_value: 0.42 },
            simulation: SimulationFigures { repeats: 1000, seed: 7 },
            latency_ms: Latency { p50: 12.0, p95: 20.0 },
            queries_per_second: 166.7,
            rounds: 40,
            bytes_per_query: [1000, 2000, 3000],
            spent: [Spent { rho: 0.32, epsilon: 4.1, delta: 1e-5 }; 3],
            sharing_seconds: 1.5,
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_text_is_aligned_and_names_every_figure() {
        let mut bytes = Vec::new();
        report().print(&mut Output::new(&mut bytes)).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        for figure in [
            "50.0 %",
            "62.5 %",
            "100.0 %",
            "12.0 ms",
            "20.0 ms",
            "166.7",
            "3000",
            "0.320000000",
            "4.1000",
            "1e-5",
        ] {
            assert!(text.contains(figure), "{figure} in\n{text}");
        }
        assert!(text.contains("no labels given") && text.contains("z = -0.80, p = 0.420"), "{text}");
        let columns: Vec<_> = text.lines().filter_map(|line| line.find("0.320000000")).collect();
        assert_eq!(columns.len(), 3);
        assert!(columns.windows(2).all(|pair| pair[0] == pair[1]));
        assert!(!text.contains("Note"));
    }

    #[test]
    fn drowned_votes_are_noted() {
        let mut report = report();
        report.note_drowned_votes();
        assert!(report.notes.is_empty());
        report.agreement.predicted = 0.61;
        report.note_drowned_votes();
        assert!(report.notes[0].starts_with("10 owners are few for sigma 2.5"), "{}", report.notes[0]);
        assert!(report.notes[0].contains("61.0 %"), "{}", report.notes[0]);
    }

    #[test]
    fn the_json_holds_what_was_promised() {
        let json = serde_json::to_value(report()).unwrap();
        for key in [
            "task",
            "owners",
            "queries",
            "batch",
            "release",
            "mechanism",
            "sigma",
            "labels",
            "accuracy",
            "plaintext_accuracy",
            "single_owner_accuracy",
            "rounds",
            "bytes_per_query",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["release"], "label");
        assert!(json["single_owner_accuracy"].is_null() && json.get("histograms").is_none());
        assert_eq!(json["latency_ms"]["p95"], 20.0);
        assert_eq!(json["spent"][2]["delta"], 1e-5);
        let mut released = report();
        released.histograms = Some(vec![vec![3, -1, 0], vec![0, 0, 1]]);
        assert_eq!(serde_json::to_value(released).unwrap()["histograms"][0][1], -1);
    }
}
