//! The program with which a model owner checks, shares and withdraws models.
//!
//! [`share_model`], [`list`] and [`withdraw`] are the owner's calls as a library. [`secure_run`] runs
//! a model under the three-party computation in this process, and [`oracle`] asks another program what its
//! file means; [`target`] says what a model is checked against; [`report`] prints.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

pub mod arguments;
pub mod inputs;
pub mod narrow;
pub mod oracle;
pub mod report;
pub mod secure_run;
pub mod share;
pub mod store;
pub mod target;

use std::{
    io::{self, IsTerminal as _, StdoutLock, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use arguments::{Arguments, CheckArguments, Command, ShareArguments};
use concilium_client_library::{
    Connection, ConnectionConfig, Task,
    budget::Budgets,
    operations::Servers,
    terminal::{Failure, FailureClass, Output},
};
use concilium_network::{Check, ImportOptions, Network, Precision, Ring, import_file_with, quantise};
use indicatif::{ProgressBar, ProgressStyle};
use rand::{TryRng as _, rngs::SysRng};

use inputs::{ranges, read_rows};
use narrow::Narrow;
use oracle::Outputs;
use secure_run::SecureRun;
pub use share::{ShareError, ShareOptions, Shared, share_model};
pub use store::{Listing, WithdrawError, Withdrawal, list, withdraw};
use target::{Target, TargetError};

/// Runs the program.
///
/// # Errors
/// [`Failure`] with the exit code that `--help` explains.
pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut output = Output::standard();
    let config = &arguments.config;
    match &arguments.command {
        Command::Check(check) => run_check(config, check, &mut output).await,
        Command::Share(share) => run_share(config, share, &mut output).await,
        Command::List { task, all } => {
            let connection = connect(config)?;
            let mut listing = list(&connection, task.as_deref()).await;
            if !all {
                listing.models = store::present(listing.models);
            }
            report::models(&listing.models, &mut output)?;
            let models = listing.complete()?;
            if models.iter().all(|model| model.budget().is_none()) {
                return Ok(());
            }
            let budgets = Budgets::read(&connection, Servers::All, task.as_deref()).await;
            report::bounds(&budgets.agreed()?, &mut output)
        }
        Command::Withdraw { name, task, reason } => {
            let withdrawal = Withdrawal { task, model: name, reason, ..Withdrawal::default() };
            let servers = withdraw(&connect(config)?, &withdrawal).await?;
            let servers: Vec<_> = servers.iter().map(u8::to_string).collect();
            output.line(format_args!("withdrew {name} of task {task} from server {}", servers.join(", ")))
        }
    }
}

fn connect(config: &Path) -> Result<Connection, Failure> {
    Ok(Connection::open(&ConnectionConfig::load(config)?)?)
}

impl From<ShareError> for Failure {
    fn from(error: ShareError) -> Self {
        Self::new(error.class(), &error)
    }
}

impl From<WithdrawError> for Failure {
    fn from(error: WithdrawError) -> Self {
        Self::new(error.class(), &error)
    }
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        Self::new(FailureClass::Input, &error)
    }
}

fn import(path: &Path, output: Option<&String>) -> Result<Network, Failure> {
    import_file_with(path, &ImportOptions::with_output(output.cloned()))
        .map_err(|error| Failure::from(error).context(path.display()))
}

async fn run_check(
    config: &Path,
    arguments: &CheckArguments,
    output: &mut Output<StdoutLock<'static>>,
) -> Result<(), Failure> {
    let mut found = Found::default();
    let outcome = check(config, arguments, &mut found, output).await;
    if let Some(path) = &arguments.json {
        let reason = outcome.as_ref().err().map(ToString::to_string);
        let text = report::check_json(&found, reason.as_deref());
        std::fs::write(path, text + "\n")
            .map_err(|error| Failure::new(FailureClass::Local, &error).context(path.display()))?;
    }
    outcome
}

/// What `check` has found out until it ended.
#[derive(Default)]
pub struct Found {
    /// Operators, ranges and precision.
    pub check: Option<Check>,
    /// What the secure run has shown.
    pub run: Option<SecureRun>,
    /// Its outputs beside those of the oracle.
    pub outputs: Option<Outputs>,
    /// What the ring of 32 bits would give, for a model that fits that of 64.
    pub narrow: Option<Narrow>,
    /// Whether the rows are the owner's own.
    pub given_rows: bool,
}

async fn check(
    config: &Path,
    arguments: &CheckArguments,
    found: &mut Found,
    output: &mut Output<StdoutLock<'static>>,
) -> Result<(), Failure> {
    let network = import(&arguments.model, arguments.output.as_ref())?;
    let inputs = arguments.inputs.as_ref().map(|path| read_rows(path, network.input_features())).transpose();
    let inputs = inputs.map_err(|error| Failure::new(FailureClass::Input, &error))?;
    let target = match (&arguments.task, &arguments.task_file) {
        (Some(task), Some(file)) => Target::of_file(file, task)?,
        (Some(task), None) => Target::of_task(&connect(config)?.task(task).await?),
        (None, _) if !arguments.input_minimum.is_empty() => {
            let (minimum, maximum) = (arguments.input_minimum.clone(), arguments.input_maximum.clone());
            Target::of_ranges(&network, minimum, maximum, arguments.ring_bits, arguments.fractional_bits)?
        }
        (None, _) if inputs.is_some() => {
            let ranges = inputs.as_ref().map(|rows| ranges(rows, network.input_shape()));
            let (minimum, maximum) = ranges.unwrap_or_default();
            let whose = if minimum.len() == 1 { "the inputs" } else { "its column of the inputs" };
            let _ = writeln!(
                io::stderr(),
                "note: no ranges were given, so every feature is taken to lie between the least and the most of {whose}"
            );
            Target::of_ranges(&network, minimum, maximum, arguments.ring_bits, arguments.fractional_bits)?
        }
        (None, _) => {
            // What normalised features usually keep to. The headroom found holds for these ranges only.
            let _ = writeln!(
                io::stderr(),
                "note: no ranges were given, so every feature is taken to lie from -1 to 1; give the task with \
                 --task, or --input-minimum and --input-maximum"
            );
            Target::of_ranges(
                &network,
                vec![-1.0],
                vec![1.0],
                arguments.ring_bits,
                arguments.fractional_bits,
            )?
        }
    };
    let check =
        &*found.check.insert(Check::new(&network, &target.domain, target.ring, target.fractional_bits)?);
    output.line(check.to_string().trim_end())?;
    target.check_classes(&network)?;
    if let Some(refusal) = &check.refusal {
        return Err(Failure::message(
            FailureClass::Input,
            format!("{} is refused: {refusal}", arguments.model.display()),
        ));
    }
    let precision = Precision { ring: target.ring, fractional_bits: check.fractional_bits };
    let fixed = quantise(&network, &target.domain, precision)?;
    let seed = match arguments.seed {
        Some(seed) => seed,
        // Short enough to be typed again.
        None => {
            SysRng.try_next_u32().map(u64::from).map_err(|error| Failure::new(FailureClass::Local, &error))?
        }
    };
    found.given_rows = inputs.is_some();
    let (rows, origin) = match inputs {
        Some(rows) => (rows, "given rows".to_owned()),
        None => {
            let rows = secure_run::draw_rows(&target.domain, arguments.rows.get(), seed);
            (rows, format!("random rows, --seed {seed}"))
        }
    };
    let bar = progress_bar(rows.nrows() as u64, "{msg} {bar:40} {pos}/{len} rows  {eta} left");
    bar.set_message("secure run");
    let shown =
        secure_run::secure_run(&network, &fixed, &target.domain, &rows, seed, |done| bar.inc(done as u64));
    bar.finish_and_clear();
    let shown = found.run.insert(shown.map_err(|error| Failure::new(FailureClass::Input, &error))?);
    let ending = network.origin().map(|origin| origin.ending).unwrap_or_default();
    let logits = [&shown.logits, &shown.fixed_logits, &shown.exact_logits];
    let options = ImportOptions::with_output(arguments.output.clone());
    let tract = oracle::evaluate(&arguments.model, &options, rows.view());
    let outputs = oracle::compare(logits, ending, tract.clone());
    let outputs = &*found.outputs.insert(outputs);
    report::secure_run(check, shown, outputs, &origin, output)?;
    if target.ring == Ring::Bits64 {
        let bar = progress_bar(rows.nrows() as u64, "{msg} {bar:40} {pos}/{len} rows  {eta} left");
        bar.set_message("ring of 32 bits");
        let narrow =
            Narrow::of(&network, &target.domain, &rows, seed, shown, tract, |done| bar.inc(done as u64));
        bar.finish_and_clear();
        let narrow = found.narrow.insert(narrow.map_err(|error| Failure::new(FailureClass::Input, &error))?);
        report::narrow_ring(narrow, shown, outputs, found.given_rows, output)?;
    }
    Ok(())
}

/// A bar on standard error where that is a terminal.
fn progress_bar(length: u64, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

async fn run_share(
    config: &Path,
    arguments: &ShareArguments,
    output: &mut Output<StdoutLock<'static>>,
) -> Result<(), Failure> {
    let names = names(arguments)?;
    let networks = arguments
        .models
        .iter()
        .map(|path| import(path, arguments.output.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let connection = connect(config)?;
    let task = connection.task(&arguments.task).await?;
    // None is sent unless all can be.
    for (path, network) in arguments.models.iter().zip(&networks) {
        let fixed = share::prepare(&task, network, arguments.retrained_on_new_data)
            .map_err(|error| Failure::from(error).context(path.display()))?;
        if arguments.dry_run {
            output.line(report::prepared(path, &fixed))?;
        }
    }
    if arguments.dry_run {
        return output.line(format_args!("nothing was sent; task {} accepts these models", task.name));
    }
    for ((path, network), name) in arguments.models.iter().zip(&networks).zip(&names) {
        let shared = share_one(&connection, &task, name, network, arguments).await;
        let shared = shared.map_err(|error| error.context(path.display()))?;
        output.line(report::shared(name, &task, &shared))?;
    }
    Ok(())
}

/// The name of every model, each of them once.
fn names(arguments: &ShareArguments) -> Result<Vec<String>, Failure> {
    let wrong = |message: String| Failure::message(FailureClass::Input, message);
    if let Some(name) = &arguments.name {
        if arguments.models.len() > 1 {
            return Err(wrong(format!(
                "--name {name} is for one model; leave it out or share one at a time"
            )));
        }
        return Ok(vec![name.clone()]);
    }
    let name = |path: &PathBuf| {
        share::model_name(path).map_err(|error| Failure::from(error).context(path.display()))
    };
    let names = arguments.models.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    for (position, name) in names.iter().enumerate() {
        if names[..position].contains(name) {
            return Err(wrong(format!(
                "two of the models would be called {name}; share them one at a time with --name"
            )));
        }
    }
    Ok(names)
}

async fn share_one(
    connection: &Connection,
    task: &Task,
    name: &str,
    network: &Network,
    arguments: &ShareArguments,
) -> Result<Shared, Failure> {
    let mut options = ShareOptions {
        replace: arguments.replace,
        budget: arguments.budget_rho,
        retrained: arguments.retrained_on_new_data,
        ..ShareOptions::default()
    };
    let bar = if arguments.quiet {
        ProgressBar::hidden()
    } else {
        // Two of the three servers get data; a repeated upload counts again.
        let bytes = 2 * (task.ring.element_bytes() * network.parameter_count()) as u64;
        progress_bar(bytes, "{msg} {bar:40} {bytes}/{total_bytes}  {eta} left").with_message(name.to_owned())
    };
    let shown = bar.clone();
    options.progress = Some(Arc::new(move |bytes| shown.inc(bytes)));
    let shared = share_model(connection, task, name, network, &options).await;
    bar.finish_and_clear();
    Ok(shared?)
}
