//! Answers and tasks for a terminal.

use std::io::Write;

use concilium_client_library::{
    Task,
    task::describe_mechanism,
    terminal::{Failure, Output},
};

use super::{BudgetReport, NO_CONSENSUS, Report, RowReport};

impl Report {
    /// Prints one line for each row: its label and, for histograms, margin and counts, for probabilities
    /// the noisy means.
    ///
    /// # Errors
    /// [`Failure`] if standard output is closed.
    pub fn table(&self, task: &Task, output: &mut Output<impl Write>) -> Result<(), Failure> {
        let mut header = vec!["row".to_owned(), "label".to_owned()];
        if self.histograms.is_some() {
            header.extend(["margin", "sure", "lead (95 %)"].map(str::to_owned));
            header.extend((0..task.classes).map(|class| task.class_name(class)));
        }
        if self.mean_probabilities.is_some() {
            header.extend((0..task.classes).map(|class| task.class_name(class)));
        }
        let mut rows = vec![header];
        for (position, label) in self.labels.iter().enumerate() {
            let name = label.map_or_else(|| NO_CONSENSUS.to_owned(), |label| task.class_name(label));
            let mut row = vec![(self.first_row + position).to_string(), name];
            if let Some(counts) = self.histograms.as_ref().and_then(|histograms| histograms.get(position)) {
                let confidence = self.confidence.as_ref().and_then(|rows| rows.get(position));
                row.extend(confidence.map_or_else(
                    || [(); 3].map(|()| "-".to_owned()),
                    |&RowReport { margin, plurality_probability, lead: (least, most) }| {
                        // Rounded down: what is shown is not more than what is known.
                        let sure = (plurality_probability * 1e4).floor() / 1e2;
                        [margin.to_string(), format!("{sure:.2} %"), format!("{least} to {most}")]
                    },
                ));
                row.extend(counts.iter().map(i64::to_string));
            }
            if let Some(means) = self.mean_probabilities.as_ref().and_then(|means| means.get(position)) {
                row.extend(means.iter().map(|mean| format!("{mean:.4}")));
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
                self.labels.iter().flatten().count()
            ))?;
        }
        if let Some(consensus) = &self.consensus {
            output.line(format_args!(
                "consensus  {} of {} rows reached {} votes ({}): rho {} each for the test, rho {} for an answer",
                consensus.consenting_rows,
                self.labels.len(),
                consensus.votes,
                consensus.mechanism,
                consensus.test_rho,
                consensus.answer_rho
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
        if let Some(last) = self.requests.last() {
            output.line(format_args!(
                "noise      {:.3} votes standard deviation on each count",
                last.noise_standard_deviation
            ))?;
        }
        output.line(format_args!("charged    rho {}, receipts signed by three servers", self.charged_rho))?;
        let replayed = self.requests.iter().filter(|request| request.replayed).count();
        if replayed > 0 {
            output.line(format_args!(
                "repeated   {replayed} of {} requests: answered from what the servers kept, charged once only",
                self.requests.len()
            ))?;
        }
        output.line(format_args!(
            "spent      rho {}, epsilon {:.3} at delta {}",
            self.caller_spent_rho, self.caller_spent_epsilon, self.delta
        ))?;
        if self.caller_budgets.is_empty() {
            output.line(format_args!("cap        rho {} for all clients together", task.task_cap))?;
        }
        for BudgetReport { scope, cap_rho, left_rho } in &self.caller_budgets {
            output
                .line(format_args!("left       rho {left_rho} of rho {cap_rho} for this client ({scope})"))?;
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
            task.release.to_string(),
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
