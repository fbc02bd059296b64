//! One demonstration from its models to its report.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use concilium_client_library::answer::Released;
use concilium_client_library::operations::Servers;
use concilium_client_library::predict::RequestAnswer;
use concilium_client_library::{Connection, Predictor, Task, budget};
use concilium_owner::{ShareOptions, share_model};
use concilium_privacy::{Mechanism, Release, convert};
use concilium_rpc::identity::Role;
use ndarray::Array2;
use tokio::task::{JoinSet, spawn_blocking};

use crate::cluster::{Cluster, ServerProgram};
use crate::data::{Data, Owner, Selection};
use crate::error::DemoError;
use crate::figures::{agreement, count, majorities, percentile, single_owners};
use crate::folder::Folder;
use crate::progress::{bar, say};
use crate::report::{Latency, Report, SimulationFigures, Spent, describe};
use crate::simulation::Simulation;
use crate::task::TaskPlan;

/// Owners that share their models at the same time.
const OWNERS_AT_ONCE: usize = 4;
/// How long the servers may take to connect to each other.
pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_secs(60);
/// Rows that a server evaluates together, unless one request has more.
const BATCH_ROWS: usize = 256;
/// Name of every owner's model: an owner has only one.
const MODEL: &str = "network";

/// What to demonstrate.
#[derive(Clone)]
pub struct Options {
    /// Models and inputs.
    pub data: Selection,
    /// What is released.
    pub release: Release,
    /// The noise.
    pub mechanism: Mechanism,
    /// Rows of one request, 1 to 4096.
    pub batch: usize,
    /// Fractional bits; the most that all models allow without it.
    pub fractional_bits: Option<u32>,
    /// The folder to work in and to leave; a temporary one without it.
    pub keep: Option<PathBuf>,
}

/// Runs a demonstration; `program` runs a server. Dropping the future ends the servers and removes
/// the temporary folder.
///
/// # Errors
/// [`DemoError`]; everything that was started is ended then, too.
pub async fn run(options: &Options, program: ServerProgram) -> Result<Report, DemoError> {
    let selection = options.data.clone();
    let (data, votes) = spawn_blocking(move || {
        let data = Data::load(&selection)?;
        let votes = data.votes();
        Ok::<_, DemoError>((Arc::new(data), votes))
    })
    .await??;
    let fractional_bits = match options.fractional_bits {
        Some(bits) => bits,
        None => {
            let data = Arc::clone(&data);
            spawn_blocking(move || data.choose_fractional_bits()).await??
        }
    };
    let plan = TaskPlan::new(&data, options.release, options.mechanism, fractional_bits, options.batch)?;
    if data.ranges_from_inputs {
        say("note: the ranges of the features were taken from the inputs. An operator would write public \
             ranges from knowledge of the field: ranges that come from data tell something about it");
    }

    let outcome = serve(options, &data, &plan, program).await?;

    say("simulating the same noise in plaintext");
    let counts = count(votes.view(), data.classes);
    let plaintext = majorities(counts.view());
    let mechanism = options.mechanism;
    let simulation =
        spawn_blocking(move || Simulation::run(counts.view(), mechanism, rand::random())).await??;
    Ok(report(&data, &plan, votes, plaintext, &simulation, &outcome))
}

/// What servers, owners and client did.
struct Outcome {
    answers: Vec<RequestAnswer>,
    elapsed: Duration,
    sharing: Duration,
    spent: [Spent; 3],
}

/// Starts the servers, shares the models, asks, reads the budgets and ends the servers.
async fn serve(
    options: &Options,
    data: &Arc<Data>,
    plan: &TaskPlan,
    program: ServerProgram,
) -> Result<Outcome, DemoError> {
    // Dropped in reverse: first the servers end, then their folder goes.
    let folder = Folder::new(options.keep.as_deref())?;
    let file = plan.file()?;
    let limits = format!("[limits]\nbatch_rows = {}\n", BATCH_ROWS.max(options.batch));
    let begin = Instant::now();
    let mut cluster = Cluster::start(folder.path(), program, [&file, &file, &file], &limits)?;
    say(format_args!("three servers run on {}", cluster.addresses().join(", ")));
    cluster.wait_until_ready(CONNECT_PATIENCE).await?;

    share_models(&cluster, &data.task, &data.owners).await?;
    let sharing = begin.elapsed();

    let client = Connection::open(&cluster.member(Role::Client, "client")?)?;
    let predictor =
        Predictor::new(&client, client.task(&data.task).await?).with_rows_per_request(options.batch);
    let bar = bar("predicting", data.inputs.nrows(), "rows");
    let begin = Instant::now();
    let answers = predictor
        .predict(data.inputs.view(), |answer: &RequestAnswer| bar.inc(answer.rows.len() as u64))
        .await;
    let elapsed = begin.elapsed();
    bar.finish_and_clear();
    let answers = answers?;
    for answer in &answers {
        let (voted, owners) = (answer.receipt.models, data.owners.len());
        if voted as usize != owners {
            return Err(DemoError::OwnersMissing { voted, owners, row: answer.rows.start });
        }
    }

    let spent = read_budgets(&cluster, &data.task).await?;
    drop(client);
    say("stopping the servers");
    cluster.stop();
    if let Folder::Kept(path) = &folder {
        say(format_args!("kept certificates, logs and ledgers in {}", path.display()));
    }
    Ok(Outcome { answers, elapsed, sharing, spent })
}

/// Every owner shares its model with a certificate of its own, some at a time.
pub(crate) async fn share_models(
    cluster: &Cluster,
    task: &str,
    owners: &[Arc<Owner>],
) -> Result<(), DemoError> {
    let bar = bar("sharing", owners.len(), "owners' models");
    let mut waiting = owners.iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < OWNERS_AT_ONCE
            && let Some(owner) = waiting.next()
        {
            let connection = Connection::open(&cluster.member(Role::Owner, &owner.name)?)?;
            running.spawn(share_one(connection, task.to_owned(), Arc::clone(owner)));
        }
        match running.join_next().await {
            Some(shared) => shared??,
            None => break,
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

async fn share_one(connection: Connection, task: String, owner: Arc<Owner>) -> Result<(), DemoError> {
    let task: Task = connection.task(&task).await?;
    let options = ShareOptions::default();
    match share_model(&connection, &task, MODEL, &owner.network, &options).await {
        Ok(_) => Ok(()),
        Err(source) => Err(DemoError::Share { owner: owner.name.clone(), source: Box::new(source) }),
    }
}

/// What the three ledgers say.
async fn read_budgets(cluster: &Cluster, task: &str) -> Result<[Spent; 3], DemoError> {
    let operator = Connection::open(&cluster.member(Role::Operator, "operator")?)?;
    let answers = budget::budgets(&operator, Servers::All, Some(task)).await;
    let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut spent = [Spent { rho: 0.0, epsilon: 0.0, delta: 0.0 }; 3];
    for (server, (answer, spent)) in answers.iter().zip(&mut spent).enumerate() {
        let found = answer.tasks.iter().find(|candidate| candidate.task == task);
        let reading = found.map(budget::Reading::new);
        let Some((reading, delta)) = reading.and_then(|reading| Some((reading, reading.delta?))) else {
            return Err(DemoError::NoBudget { server, task: task.to_owned() });
        };
        *spent = Spent {
            rho: convert::rho(reading.spent),
            epsilon: reading.epsilon,
            delta: convert::delta_value(delta),
        };
    }
    Ok(spent)
}

fn report(
    data: &Data,
    plan: &TaskPlan,
    votes: Array2<usize>,
    plaintext: Vec<usize>,
    simulation: &Simulation,
    outcome: &Outcome,
) -> Report {
    let answers = &outcome.answers;
    let labels: Vec<usize> = answers.iter().flat_map(|answer| answer.released.labels()).flatten().collect();
    let latencies: Vec<f64> =
        answers.iter().map(|answer| answer.timing.latency.as_secs_f64() * 1e3).collect();
    let truth = data.labels.as_deref();
    let (mechanism, sigma, scale) = describe(plan.policy.mechanism);
    let mut report = Report {
        task: data.task.clone(),
        owners: data.owners.len(),
        classes: data.classes,
        queries: labels.len(),
        batch: plan.request_rows,
        requests: answers.len(),
        release: plan.policy.release,
        mechanism,
        sigma,
        scale,
        noise_standard_deviation: convert::actual_standard_deviation(plan.policy.mechanism),
        fractional_bits: plan.precision.fractional_bits,
        histograms: histograms(answers),
        accuracy: truth.map(|truth| agreement(&labels, truth)),
        simulated_accuracy: truth.map(|truth| simulation.accuracy(truth)),
        plaintext_accuracy: truth.map(|truth| agreement(&plaintext, truth)),
        single_owner_accuracy: None,
        single_owner_accuracy_range: None,
        agreement: simulation.compare(&labels, &plaintext),
        simulation: SimulationFigures { repeats: simulation.repeats(), seed: simulation.seed() },
        latency_ms: Latency { p50: percentile(&latencies, 0.5), p95: percentile(&latencies, 0.95) },
        queries_per_second: labels.len() as f64 / outcome.elapsed.as_secs_f64().max(1e-9),
        rounds: answers
            .iter()
            .flat_map(|answer| answer.receipt.statistics)
            .map(|server| server.rounds)
            .max()
            .unwrap_or(0),
        bytes_per_query: bytes_per_query(answers),
        spent: outcome.spent,
        sharing_seconds: outcome.sharing.as_secs_f64(),
        notes: Vec::new(),
        labels,
        plaintext_labels: plaintext,
    };
    report.set_single_owners(truth.map(|truth| single_owners(votes.view(), truth)));
    report.note_drowned_votes();
    report
}

/// The noisy counts of all queries; `None` when labels were released.
fn histograms(answers: &[RequestAnswer]) -> Option<Vec<Vec<i64>>> {
    let mut rows = Vec::new();
    for answer in answers {
        match &answer.released {
            Released::Histograms(counts) => rows.extend(counts.outer_iter().map(|row| row.to_vec())),
            _ => return None,
        }
    }
    Some(rows)
}

/// Bytes that each server sent for one query, rounded up. Receipts tell them for the batch in which a
/// request was evaluated, so they are shared out among the batch's rows.
fn bytes_per_query(answers: &[RequestAnswer]) -> [u64; 3] {
    let rows: usize = answers.iter().map(|answer| answer.rows.len()).sum();
    [0, 1, 2].map(|server: usize| {
        let part = |answer: &RequestAnswer| {
            let statistics = answer.receipt.statistics[server];
            let of_a_row = statistics.bytes_sent as f64 / f64::from(statistics.batch_rows.max(1));
            of_a_row * answer.rows.len() as f64
        };
        (answers.iter().map(part).sum::<f64>() / rows.max(1) as f64).ceil() as u64
    })
}
