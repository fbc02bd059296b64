//! The program with which a client asks for predictions.
//!
//! Thin: [`arguments`] says what it takes, [`selection`] reads the rows, [`report`] writes the
//! answers, [`receipt`] checks the receipts of answers; the work is done by `concilium-client-library`.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

pub mod arguments;
pub mod receipt;
pub mod report;
pub mod selection;

use std::{
    fs,
    io::{self, IsTerminal as _},
    path::Path,
};

use arguments::{Arguments, Command, PredictArguments, ReceiptCommand};
use concilium_client_library::{
    Connection, ConnectionConfig, Predictor, RepeatKey,
    budget::Budgets,
    budget_tables,
    operations::Servers,
    predict::RequestAnswer,
    terminal::{Failure, FailureClass, Output},
};
use concilium_privacy::{Clock as _, SystemClock};
use indicatif::{ProgressBar, ProgressStyle};
use report::Report;

/// Runs the program.
///
/// # Errors
/// [`Failure`] with the exit code that `--help` explains.
pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut output = Output::standard();
    match &arguments.command {
        Command::Predict(predict) => run_predict(&arguments.config, predict, &mut output).await,
        Command::Receipt { command: ReceiptCommand::Verify { file, ca } } => {
            receipt::verify(file, ca, &mut output)
        }
        Command::Tasks => {
            let connection = Connection::open(&ConnectionConfig::load(&arguments.config)?)?;
            report::tasks(&connection.tasks().await?, &mut output)
        }
        Command::Budget { task } => {
            let connection = Connection::open(&ConnectionConfig::load(&arguments.config)?)?;
            let budgets = Budgets::read(&connection, Servers::All, task.as_deref()).await;
            let now_ms = i64::try_from(SystemClock.now_ms()).unwrap_or(i64::MAX);
            budget_tables::print(&budgets.agreed()?, now_ms, &mut output)
        }
    }
}

async fn run_predict(
    config: &Path,
    arguments: &PredictArguments,
    output: &mut Output<io::StdoutLock<'static>>,
) -> Result<(), Failure> {
    // Local mistakes are found before any server is asked.
    let config = ConnectionConfig::load(config)?;
    let selection = selection::read(&arguments.input, arguments.labels.as_ref(), arguments.rows.as_ref())?;
    let repeat_key = arguments.repeat_key.as_deref().map(RepeatKey::load_or_create).transpose()?;
    let connection = Connection::open(&config)?;
    let task = connection.task(&arguments.task).await?;
    selection.check_labels(&task)?;
    let mut predictor = Predictor::new(&connection, task);
    if let Some(rows) = arguments.batch {
        predictor = predictor.with_rows_per_request(rows.get());
    }
    if let Some(key) = repeat_key {
        predictor = predictor.with_repeat_key(key);
    }
    let bar = progress_bar(selection.rows.nrows(), arguments.quiet);
    let outcome = predictor
        .predict(selection.rows.view(), |answer: &RequestAnswer| bar.inc(answer.rows.len() as u64))
        .await;
    bar.finish_and_clear();
    // What was answered is paid for, so it is shown even if a later request failed.
    let (answers, failure) = match outcome {
        Ok(answers) => (answers, None),
        Err(failure) => {
            let told = Failure::new(failure.class(), &failure);
            (failure.finished, Some(told))
        }
    };
    if !answers.is_empty() {
        let report = Report::new(predictor.task(), &selection, &answers);
        report.table(predictor.task(), output)?;
        if !arguments.quiet {
            report.receipt(predictor.task(), output)?;
        }
        if let Some(path) = &arguments.json {
            write_json(path, &report)?;
        }
    }
    failure.map_or(Ok(()), Err)
}

fn write_json(path: &Path, report: &Report) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::message(FailureClass::Local, format!("cannot write `{}`: {error}", path.display()))
    };
    let mut text = serde_json::to_string_pretty(report).map_err(|error| failed(&error))?;
    text.push('\n');
    fs::write(path, text).map_err(|error| failed(&error))
}

fn progress_bar(rows: usize, quiet: bool) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} rows  {elapsed} elapsed, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(rows as u64).with_style(style)
}
