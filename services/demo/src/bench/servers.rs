//! Three server processes over mutual TLS, owners that share their models, and clients that ask: the real way.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use concilium_client_library::predict::RequestAnswer;
use concilium_client_library::{Connection, Predictor, Task};
use concilium_rpc::identity::Role;
use concilium_server::config::TaskFile;
use ndarray::Array2;
use tokio::task::JoinSet;

use super::error::BenchError;
use super::options::BenchOptions;
use super::report::{Measured, OncePerModel, milliseconds};
use super::scrape::{Call, Counters, LOG_FILTER, calls};
use super::shaping::Proxies;
use super::system;
use super::workload::{MECHANISM, WARM_UP, Workload};
use crate::cluster::{Cluster, ClusterError, ServerProgram};
use crate::error::DemoError;
use crate::folder::Folder;
use crate::progress::{bar, say};
use crate::run::{CONNECT_PATIENCE, share_models};
use crate::task::TaskPlan;

/// The task of a measurement.
const TASK: &str = "bench";
/// Most rows that a server evaluates together, and least that this program configures.
const BATCH_ROWS: RangeInclusive<usize> = 256..=4096;
/// How long servers may take to count a batch that was answered, and to write to their logs.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between looks at counters and logs.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a server waits for a peer that computes, or whose messages are under way on a slow link.
const PEER_TIMEOUT_MS: u64 = 120_000;

/// Measures as `options` say; `program` runs a server. Dropping the future ends the servers and removes
/// their folder.
///
/// # Errors
/// [`BenchError`].
pub(crate) async fn measure(
    options: &BenchOptions,
    workload: Workload,
    program: ServerProgram,
) -> Result<Measured, BenchError> {
    let release = options.release.of_servers().ok_or(BenchError::LogitsOverTls)?;
    let queries = options.batch * options.clients * (WARM_UP + options.repeat);
    let domain = workload.domain.clone();
    let (classes, bits) = (workload.classes, workload.precision);
    // A task of its own, whose budget pays for this measurement.
    let plan =
        TaskPlan::paying_for(queries, TASK, classes, domain, (release, MECHANISM), bits, options.batch)
            .map_err(DemoError::from)?;
    let file = plan.file().map_err(DemoError::from)?;
    TaskFile::parse(&file, "tasks.toml".as_ref())?;
    let batch_rows = (options.batch * options.clients).clamp(*BATCH_ROWS.start(), *BATCH_ROWS.end());
    let extra = format!(
        "[limits]\nbatch_rows = {batch_rows}\nnoise_rows_ready = {}\n\
         request_timeout_ms = {PEER_TIMEOUT_MS}\npeer_timeout_ms = {PEER_TIMEOUT_MS}\n\n\
         [observability]\nlog_filter = \"{LOG_FILTER}\"\nlog_format = \"json\"\n",
        2 * batch_rows
    );

    // Dropped in reverse: the servers, the links, then the folder.
    let folder = Folder::new(options.keep.as_deref())?;
    let mut proxies = None;
    let through = |peers: &[String; 3]| {
        if options.shape.is_direct() {
            return Ok(peers.clone());
        }
        let started = Proxies::start(peers, options.shape)?;
        Ok(proxies.insert(started).addresses().clone())
    };
    let mut cluster =
        Cluster::prepare_through(folder.path(), program, [&file; 3], [&extra; 3], through).map_err(failed)?;
    for server in 0..3 {
        cluster.start_server(server).map_err(failed)?;
    }
    cluster.wait_until_ready(CONNECT_PATIENCE).await.map_err(failed)?;
    let models = workload.owners.len();
    let begin = Instant::now();
    share_models(&cluster, TASK, &workload.owners).await?;
    let once = OncePerModel {
        import_ms: milliseconds(workload.import) / models as f64,
        sharing_ms: milliseconds(begin.elapsed()) / models as f64,
        ..OncePerModel::default()
    };
    let rows = Arc::new(workload.rows);
    drop(workload.owners);

    let mut measured = Measured { once, ..Measured::default() };
    let mut clients = Vec::new();
    for client in 0..options.clients {
        let config = cluster.member(Role::Client, &format!("client-{client:03}")).map_err(failed)?;
        let connection = Connection::open(&config).map_err(DemoError::from)?;
        let task = connection.task(TASK).await.map_err(DemoError::from)?;
        clients.push(Arc::new((connection, task)));
    }
    say("warming up");
    let first = ask_all(&clients, &rows, WARM_UP, models, |_| {}).await?;
    measured.first_query_ms = first.first().map_or(0.0, client_ms);
    let warmed_up = first.len() * options.batch;
    let before = counters(&cluster, warmed_up).await?;
    let progress = bar("measuring", options.clients * options.repeat, "requests");
    let begin = Instant::now();
    let answers = ask_all(&clients, &rows, options.repeat, models, |_| progress.inc(1)).await?;
    measured.elapsed = begin.elapsed();
    progress.finish_and_clear();
    let after = counters(&cluster, warmed_up + answers.len() * options.batch).await?;
    for server in 0..3 {
        let (batches, bytes, messages, phases) = after[server].since(&before[server]);
        measured.batches = batches;
        (measured.bytes[server], measured.messages[server]) = (bytes, messages);
        measured.phases[server] = phases;
        measured.peak_rss_bytes[server] = system::peak_memory(cluster.process_id(server)).unwrap_or(0);
    }
    let statistics = answers.iter().flat_map(|answer| answer.receipt.statistics);
    measured.rounds = statistics.map(|server| server.rounds).max().unwrap_or(0);
    measured.client_ms = answers.iter().map(client_ms).collect();
    measured.repeated_attempts = answers.iter().map(|answer| u64::from(answer.attempts) - 1).sum();
    measured.server_ms = server_ms(&cluster, &answers).await?;
    drop(clients);
    say("stopping the servers");
    cluster.stop();
    if let Folder::Kept(path) = &folder {
        say(format_args!("kept configurations, logs and ledgers in {}", path.display()));
    }
    Ok(measured)
}

fn failed(error: ClusterError) -> BenchError {
    DemoError::from(error).into()
}

/// Every client makes `requests` requests with all rows, one after the other, and all clients at a time.
async fn ask_all(
    clients: &[Arc<(Connection, Task)>],
    rows: &Arc<Array2<f64>>,
    requests: usize,
    models: usize,
    finished: impl Fn(&RequestAnswer),
) -> Result<Vec<RequestAnswer>, BenchError> {
    let (done, mut answered) = tokio::sync::mpsc::unbounded_channel();
    let mut running = JoinSet::new();
    for client in clients {
        let (client, rows, done) = (Arc::clone(client), Arc::clone(rows), done.clone());
        running.spawn(async move {
            let (connection, task) = &*client;
            let predictor = Predictor::new(connection, task.clone());
            for _ in 0..requests {
                let answers = predictor.predict(rows.view(), |_| {}).await;
                let failed = answers.is_err();
                // Nobody listens any more when another client has failed.
                if done.send(answers).is_err() || failed {
                    break;
                }
            }
        });
    }
    drop(done);
    let mut all = Vec::with_capacity(clients.len() * requests);
    while let Some(answers) = answered.recv().await {
        for answer in answers.map_err(DemoError::from)? {
            let voted = answer.receipt.models;
            if voted as usize != models {
                return Err(DemoError::OwnersMissing { voted, owners: models, row: 0 }.into());
            }
            finished(&answer);
            all.push(answer);
        }
    }
    let (asked, found) = (clients.len() * requests * rows.nrows(), all.len() * rows.nrows());
    if asked == found { Ok(all) } else { Err(BenchError::Incomplete { asked, found }) }
}

fn client_ms(answer: &RequestAnswer) -> f64 {
    milliseconds(answer.timing.sharing + answer.timing.latency)
}

/// The servers' counters when they have released batches of `rows` rows in all. A server counts a batch when its
/// clients have their answers already.
async fn counters(cluster: &Cluster, rows: usize) -> Result<[Counters; 3], BenchError> {
    let begin = Instant::now();
    let mut counted = false;
    loop {
        let mut counters: [Counters; 3] = Default::default();
        for (server, counters) in counters.iter_mut().enumerate() {
            *counters = Counters::read(server, cluster.web_address(server)).await?;
        }
        // The last step of a batch ends just after the batch is counted: that is read the next time.
        if counted {
            return Ok(counters);
        }
        counted = counters.iter().all(|server| server.rows() == rows);
        if begin.elapsed() > PATIENCE {
            let found = counters.iter().map(Counters::rows).min().unwrap_or(0);
            return Err(BenchError::Incomplete { asked: rows, found });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// From the first server's begin of each request to the last server's end.
async fn server_ms(cluster: &Cluster, answers: &[RequestAnswer]) -> Result<Vec<f64>, BenchError> {
    let requests: Vec<String> = answers
        .iter()
        .map(|answer| answer.receipt.request_id.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    let begin = Instant::now();
    loop {
        let logs = [0, 1, 2].map(|server| calls(&cluster.log(server)));
        let missing = logs
            .each_ref()
            .map(|calls| requests.iter().filter(|request| !calls.contains_key(request.as_str())).count());
        let Some(server) = missing.iter().position(|&missing| missing > 0) else {
            let times = requests.iter().filter_map(|request| {
                let joined = logs.iter().map(|calls| calls[request]).reduce(Call::join)?;
                Some((joined.ended - joined.began) as f64 / 1e3)
            });
            return Ok(times.collect());
        };
        if begin.elapsed() > PATIENCE {
            return Err(BenchError::Times { server, missing: missing[server], requests: requests.len() });
        }
        tokio::time::sleep(PAUSE).await;
    }
}
