//! From a configuration file to a running server, or to everything that is wrong with the file.

use std::future::Future;
use std::path::Path;

use concilium_client_library::terminal::{Failure, FailureClass};
use concilium_rpc::tls::TlsError;

use crate::config::{ConfigError, Ports, Severity, check, problem};
use crate::randomness::Randomness;
use crate::{log, run};

/// Checks the configuration in `path`, starts to log and runs the server until `stop` finishes. With
/// `new_ledger` a ledger that is missing is started anew whatever else the server holds.
/// All its secrets come from `randomness`, [`Randomness::system`] in a program.
///
/// # Errors
/// [`Failure`] with one line for each thing that is wrong.
pub async fn start(
    path: &Path,
    new_ledger: bool,
    randomness: &Randomness,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let check = check(path, Ports::Try);
    let problems = check.problems().to_vec();
    let class = check.failure_class();
    let config = match check.into_config() {
        Some(config) => config,
        None => {
            let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
            let lines: Vec<_> = errors.map(ToString::to_string).collect();
            return Err(Failure::message(class.unwrap_or(FailureClass::Input), lines.join("\n")));
        }
    };
    log::start(&config).map_err(|error| Failure::new(FailureClass::Input, error.as_ref()))?;
    for warning in &problems {
        tracing::warn!(%warning, "the configuration should be looked at");
    }
    run(config, new_ledger, randomness, stop).await.map_err(|error| match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(error) => Failure::new(class_of(&error), error.as_ref()),
    })
}

/// What was checked may have changed since.
fn class_of(error: &anyhow::Error) -> FailureClass {
    if let Some(error) = error.downcast_ref::<ConfigError>() {
        problem::failure_class(error.problems()).unwrap_or(FailureClass::Input)
    } else if error.downcast_ref::<TlsError>().is_some() {
        FailureClass::Input
    } else {
        FailureClass::Local
    }
}
