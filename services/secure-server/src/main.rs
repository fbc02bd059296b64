//! `concilium-server`: see `concilium-server --help`.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use concilium_client_library::terminal::{self, Failure, FailureClass, Output};
use concilium_server::Randomness;
use concilium_server::arguments::{Arguments, Command, ConfigCommand};
use concilium_server::config::{Check, Ports, Severity, check, reference};

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { config, new_ledger, command } = Arguments::parse();
    let outcome = match command {
        None | Some(Command::Run) => {
            // Awaited from now on: a signal during the start must not end the process as if by force.
            let stop = tokio::spawn(concilium_server::log::stop_signal());
            let stopped = async {
                let _ = stop.await;
            };
            let randomness = Randomness::system();
            concilium_server::start(&config, new_ledger, &randomness, stopped)
                .await
                .map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Health) => {
            concilium_server::health::check(&config).await.map(|()| ExitCode::SUCCESS).map_err(|error| {
                // A supervisor knows two states only.
                Failure::new(FailureClass::Local, error.as_ref())
            })
        }
        Some(Command::Config { command: ConfigCommand::Check { running, json } }) => {
            report(&config, if running { Ports::Leave } else { Ports::Try }, json)
        }
        Some(Command::Config { command: ConfigCommand::Print { tasks } }) => print(&config, tasks),
        Some(Command::Config { command: ConfigCommand::Schema { json } }) => schema(json),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => terminal::exit(Err(failure)),
    }
}

fn code(check: &Check) -> u8 {
    check.failure_class().map_or(0, FailureClass::code)
}

fn report(path: &Path, ports: Ports, json: bool) -> Result<ExitCode, Failure> {
    let check = check(path, ports);
    let mut output = Output::standard();
    if json {
        let report = serde_json::json!({
            "can_start": check.failure_class().is_none(),
            "exit_code": code(&check),
            "problems": check.problems(),
        });
        output.line(format_args!("{report:#}"))?;
        return Ok(ExitCode::from(code(&check)));
    }
    let mut counts = [0, 0];
    for problem in check.problems() {
        let (name, place) = match problem.severity {
            Severity::Error => ("error", 0),
            Severity::Warning => ("warning", 1),
        };
        counts[place] += 1;
        output.line(format_args!("{name}: {problem}"))?;
    }
    let [errors, warnings] = counts;
    let verdict = if errors == 0 { "the server can start" } else { "the server does not start" };
    output.line(format_args!("{}: {errors} errors, {warnings} warnings; {verdict}", path.display()))?;
    Ok(ExitCode::from(code(&check)))
}

fn print(path: &Path, tasks: bool) -> Result<ExitCode, Failure> {
    let check = check(path, Ports::Leave);
    let text = if tasks { check.print_tasks() } else { check.print_server(path) };
    let text = text.map_err(|error| Failure::message(FailureClass::Input, error.to_string()))?;
    Output::standard().line(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn schema(json: bool) -> Result<ExitCode, Failure> {
    let mut output = Output::standard();
    if json {
        output.line(format_args!("{:#}", reference::json()))?;
    } else {
        output.line(reference::text().trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}
