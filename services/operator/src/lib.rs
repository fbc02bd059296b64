//! The program with which an operator inspects one server, or all three, finds out what is wrong between
//! them and this host, sets what they log, and issues certificates.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

pub mod arguments;
pub mod audit;
pub mod certificates;
pub mod doctor;
pub mod export;
pub mod planning;
pub mod report;

use std::{
    io::{self, StdoutLock, Write as _},
    path::Path,
};

use arguments::{Arguments, BudgetArguments, BudgetCommand, CertsCommand, Command, LogFilterArguments};
use concilium_client_library::{
    Connection, ConnectionConfig, ServerError,
    budget::Budgets,
    connection::most_useful,
    operations::{Servers, log_filters, model_sets, resume_task, set_log_filter, statuses},
    terminal::{Failure, FailureClass, Output},
};
use concilium_privacy::SystemClock;

/// Runs the program.
///
/// # Errors
/// [`Failure`] with the exit code that `--help` explains.
pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut output = Output::standard();
    match &arguments.command {
        Command::Budget(BudgetArguments { command: None, task, server }) => {
            let connection = connect(&arguments.config)?;
            show_budget(&connection, servers(*server), task.as_deref(), &mut output).await
        }
        Command::Budget(BudgetArguments { command: Some(BudgetCommand::Resume(resume)), .. }) => {
            let connection = connect(&arguments.config)?;
            let asked = servers(resume.server);
            let (answers, errors) =
                split(resume_task(&connection, asked, &resume.task, &resume.reason).await);
            report::resumed(&resume.task, &answers, &mut output)?;
            conclude(Vec::new(), errors)
        }
        Command::Budget(BudgetArguments { command: Some(BudgetCommand::WhatIf(question)), .. }) => {
            let (policy, ready) = match &question.task_file {
                Some(file) => (planning::of_file(file, Some(&question.task))?.remove(0), 0),
                None => {
                    let task = connect(&arguments.config)?.task(&question.task).await?;
                    (task.policy(), task.models_ready)
                }
            };
            planning::what_if(policy, ready, question, &mut output)
        }
        Command::Explain { task, task_file } => {
            let policies = match (task_file, task) {
                (Some(file), task) => planning::of_file(file, task.as_deref())?,
                (None, Some(task)) => vec![connect(&arguments.config)?.task(task).await?.policy()],
                (None, None) => {
                    let tasks = connect(&arguments.config)?.tasks().await?;
                    tasks.iter().map(concilium_client_library::Task::policy).collect()
                }
            };
            planning::explain(&policies, &mut output)
        }
        Command::Audit(question) => {
            let policy = match &question.task_file {
                Some(file) => planning::of_file(file, Some(&question.task))?.remove(0),
                None => connect(&arguments.config)?.task(&question.task).await?.policy(),
            };
            audit::audit(&policy, question, &mut output)
        }
        Command::Budget(BudgetArguments { command: Some(BudgetCommand::Export { server, out }), .. }) => {
            export::export(&connect(&arguments.config)?, *server, out, &mut output).await
        }
        Command::Budget(BudgetArguments { command: Some(BudgetCommand::Verify { files, ca }), .. }) => {
            if files.is_empty() {
                return export::verify_live(&connect(&arguments.config)?, &mut output).await;
            }
            export::verify(files, ca, &mut output)
        }
        Command::Status { server } => {
            let connection = connect(&arguments.config)?;
            let (answers, errors) = split(statuses(&connection, servers(*server)).await);
            report::status(&answers, &mut output)?;
            conclude(report::status_differences(&answers), errors)
        }
        Command::ModelSet { digest, server } => {
            let connection = connect(&arguments.config)?;
            let (answers, errors) = split(model_sets(&connection, servers(*server), &digest.0).await);
            report::model_sets(&answers, &mut output)?;
            if errors.is_empty() && answers.iter().all(|answer| answer.sets.is_empty()) {
                return Err(Failure::message(
                    FailureClass::Input,
                    "no server has released an answer of such a set; compare the digest with the receipt",
                ));
            }
            conclude(Vec::new(), errors)
        }
        Command::LogFilter(LogFilterArguments { server, duration, filter, .. }) => {
            let connection = connect(&arguments.config)?;
            let results = match filter {
                Some(filter) => set_log_filter(&connection, servers(*server), filter, *duration).await,
                None => log_filters(&connection, servers(*server)).await,
            };
            let (answers, errors) = split(results);
            report::log_filters(&answers, filter.is_some(), &mut output)?;
            conclude(Vec::new(), errors)
        }
        Command::Doctor { tasks, json } => {
            let config = ConnectionConfig::load(&arguments.config)?;
            let report = doctor::examine(&config, tasks.as_deref(), &SystemClock).await;
            doctor::conclude(&report, *json, &mut output)
        }
        Command::Certs { command: CertsCommand::Init { folder } } => output.line(certificates::init(folder)?),
        Command::Certs { command: CertsCommand::Issue(issue) } => output.line(certificates::issue(issue)?),
        Command::Certs { command: CertsCommand::Show { paths, json } } => {
            certificates::show(paths, *json, &mut output)
        }
        Command::Certs { command: CertsCommand::Renew(renew) } => output.line(certificates::renew(renew)?),
    }
}

fn connect(config: &Path) -> Result<Connection, Failure> {
    Ok(Connection::open(&ConnectionConfig::load(config)?)?)
}

fn servers(server: Option<u8>) -> Servers {
    server.map_or(Servers::All, Servers::One)
}

async fn show_budget(
    connection: &Connection,
    servers: Servers,
    task: Option<&str>,
    output: &mut Output<StdoutLock<'static>>,
) -> Result<(), Failure> {
    let Budgets { answers, errors, differences } = Budgets::read(connection, servers, task).await;
    report::budget(&answers, output)?;
    conclude(differences, errors)
}

/// The answers, and why there are no more of them.
fn split<T>(results: Vec<Result<T, ServerError>>) -> (Vec<T>, Vec<ServerError>) {
    let mut errors = Vec::new();
    let answers = results.into_iter().filter_map(|result| result.map_err(|error| errors.push(error)).ok());
    (answers.collect(), errors)
}

/// Says what the servers disagree about and which of them did not answer, and fails if there is any of
/// it.
fn conclude(differences: Vec<String>, errors: Vec<ServerError>) -> Result<(), Failure> {
    let tell = |line: &str| {
        // Nothing is left to do about a standard error that is gone; the exit code still tells.
        let _ = writeln!(io::stderr(), "{line}");
    };
    differences.iter().for_each(|difference| tell(&format!("THE SERVERS DISAGREE: {difference}")));
    let failures = errors.len();
    if failures > 1 {
        errors.iter().for_each(|error| tell(&format!("no answer: {error}")));
    }
    if !differences.is_empty() {
        return Err(Failure::message(
            FailureClass::Refused,
            "the servers disagree; stop the task, find the server that is faulty or was restored from an \
             old copy, and do not trust its budget until then",
        ));
    }
    most_useful(errors).map_or(Ok(()), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use concilium_rpc::status::RpcError;

    use super::*;

    #[test]
    fn disagreement_and_silence_are_failures() {
        let silent = || {
            let source = Box::new(RpcError::UnknownIdentity {
                identity: "operator `olga`".into(),
                configuration_key: "identities.operators".into(),
            });
            ServerError::Refused { server: 1, address: "host1:1".into(), source, retry_after: None }
        };
        assert!(conclude(Vec::new(), Vec::new()).is_ok());
        let failure = conclude(Vec::new(), vec![silent()]).unwrap_err();
        assert!(failure.to_string().contains("identities.operators"), "{failure}");
        let failure = conclude(vec!["task digits".into()], vec![silent()]).unwrap_err();
        assert!(failure.to_string().contains("disagree"), "{failure}");
        assert_eq!(failure.class(), FailureClass::Refused);
        let (answers, errors) = split(vec![Ok(1), Err(silent()), Ok(3)]);
        assert_eq!((answers, errors.len()), (vec![1, 3], 1));
    }
}
