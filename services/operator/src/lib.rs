//! The program with which an operator inspects one server, or all three, and issues certificates.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

pub mod arguments;
pub mod certificates;
pub mod report;

use std::{
    io::{self, StdoutLock, Write as _},
    path::Path,
    time::Duration,
};

use arguments::{Arguments, CertsCommand, Command};
use concilium_client_library::{
    Connection, ConnectionConfig, ServerError,
    budget::{Servers, budgets, differences, statuses},
    connection::most_useful,
    terminal::{Failure, FailureClass, Output},
};

/// Readings before a difference between the servers is believed: while a batch is charged, the
/// ledgers differ for a moment.
const READINGS: usize = 3;

/// Pause between readings.
const READING_PAUSE: Duration = Duration::from_millis(500);

/// Runs the program.
///
/// # Errors
/// [`Failure`] with the exit code that `--help` explains.
pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut output = Output::standard();
    match &arguments.command {
        Command::Budget { task, server } => {
            let connection = connect(&arguments.config)?;
            show_budget(&connection, servers(*server), task.as_deref(), &mut output).await
        }
        Command::Status { server } => {
            let connection = connect(&arguments.config)?;
            let (answers, errors) = split(statuses(&connection, servers(*server)).await);
            report::status(&answers, &mut output)?;
            conclude(report::status_differences(&answers), errors)
        }
        Command::Certs { command: CertsCommand::Init { folder } } => output.line(certificates::init(folder)?),
        Command::Certs { command: CertsCommand::Issue(issue) } => output.line(certificates::issue(issue)?),
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
    let mut reading = 1;
    let (answers, errors, told) = loop {
        let (answers, errors) = split(budgets(connection, servers, task).await);
        let told = differences(&answers);
        if told.is_empty() || reading == READINGS {
            break (answers, errors, told);
        }
        reading += 1;
        tokio::time::sleep(READING_PAUSE).await;
    };
    report::budget(&answers, output)?;
    conclude(told, errors)
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
