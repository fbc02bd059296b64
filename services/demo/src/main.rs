//! `concilium-demo`: see `concilium-demo --help`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use concilium_client_library::terminal::{self, Failure, FailureClass, Output};
use concilium_demo::arguments::{Arguments, Command, Demonstration};
use concilium_demo::bench::{BenchArguments, BenchOptions, Transport, run_bench, run_tables};
use concilium_demo::cluster::ServerProgram;
use concilium_demo::data::Selection;
use concilium_demo::error::DemoError;
use concilium_demo::interruption::{Interruption, interruption};
use concilium_demo::run::{Options, run};
use concilium_demo::server;
use serde::Serialize;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return terminal::exit(Err(Failure::new(FailureClass::Local, &error))),
    };
    let code = match &arguments.command {
        Some(Command::Server { config }) => terminal::exit(runtime.block_on(server::serve(config))),
        Some(Command::Bench(arguments)) => {
            runtime.block_on(bench(arguments)).unwrap_or_else(|failure| terminal::exit(Err(failure)))
        }
        None => runtime
            .block_on(demonstrate(&arguments.demonstration))
            .unwrap_or_else(|failure| terminal::exit(Err(failure))),
    };
    // After a signal a computation may still run on a thread; it holds nothing that must be tidied.
    runtime.shutdown_background();
    code
}

async fn demonstrate(arguments: &Demonstration) -> Result<ExitCode, Failure> {
    concilium_rpc::tls::install_crypto_provider();
    terminal::log_to_standard_error();
    let options = options(arguments);
    let program = server_program()?;
    let report = tokio::select! {
        // Looked at first: after a signal to the whole group, the servers' end is no failure.
        biased;
        signal = interruption() => return interrupted(signal),
        report = run(&options, program) => report,
    };
    let report = report.map_err(|error| {
        let input = error.class() == FailureClass::Input;
        advise(error.into(), input || options.keep.is_some())
    })?;
    report.print(&mut Output::standard())?;
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn bench(arguments: &BenchArguments) -> Result<ExitCode, Failure> {
    concilium_rpc::tls::install_crypto_provider();
    terminal::log_to_standard_error();
    let options = BenchOptions::new(arguments)?;
    let program = server_program()?;
    let measured = async {
        let mut output = Output::standard();
        match arguments.tables {
            None => {
                let measured = run_bench(&options, program).await.map_err(|error| {
                    let input = error.class() == FailureClass::Input;
                    let logs = arguments.transport == Transport::Tls && arguments.keep.is_none();
                    advise(error.into(), input || !logs)
                })?;
                measured.print(&mut output)?;
                arguments.json.as_ref().map_or(Ok(()), |path| write_json(path, &measured))
            }
            Some(set) => {
                let measured = run_tables(set, &options, &program, |table| output.line(table)).await?;
                arguments.json.as_ref().map_or(Ok(()), |path| write_json(path, &measured))
            }
        }
    };
    tokio::select! {
        // Looked at first: after a signal to the whole group, the servers' end is no failure.
        biased;
        signal = interruption() => interrupted(signal),
        outcome = measured => outcome.map(|()| ExitCode::SUCCESS),
    }
}

/// This program, which runs a server too.
fn server_program() -> Result<ServerProgram, Failure> {
    let path = std::env::current_exe()
        .map_err(|error| Failure::new(FailureClass::Local, &error).context("finding this program's file"))?;
    Ok(ServerProgram { path, arguments: vec!["server".to_owned()], ends_with_input: true })
}

fn options(arguments: &Demonstration) -> Options {
    // All counts were checked to be far below what any machine's `usize` holds.
    let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    Options {
        data: Selection {
            models: arguments.models.clone(),
            inputs: arguments.inputs.clone(),
            labels: arguments.labels.clone(),
            owners: arguments.owners.map(count),
            queries: arguments.queries.map(count),
        },
        release: arguments.release.into(),
        mechanism: arguments.mechanism(),
        batch: count(arguments.batch),
        fractional_bits: arguments.fractional_bits,
        keep: arguments.keep.clone(),
    }
}

/// The future of the demonstration was dropped, and with it servers and folder.
fn interrupted(signal: std::io::Result<Interruption>) -> Result<ExitCode, Failure> {
    match signal {
        Ok(signal) => {
            let message = format!("stopped by {}", signal.name);
            // The exit code of `Failure` knows no signals.
            let _ = terminal::exit(Err(Failure::message(FailureClass::Local, message)));
            Ok(ExitCode::from(signal.exit_code))
        }
        Err(error) => Err(Failure::new(FailureClass::Local, &error).context("waiting for signals")),
    }
}

/// Says where to find out more, unless it is `known`: else the logs went with the temporary folder.
fn advise(failure: Failure, known: bool) -> Failure {
    if known {
        return failure;
    }
    let class = failure.class();
    Failure::message(class, format!("{failure} (repeat with --keep DIR to have the servers' logs)"))
}

fn write_json(path: &Path, report: &impl Serialize) -> Result<(), Failure> {
    let failed = |source| DemoError::Write { path: path.to_owned(), source };
    let mut text = serde_json::to_string_pretty(report).map_err(|error| failed(error.into()))?;
    text.push('\n');
    Ok(fs::write(path, text).map_err(failed)?)
}
