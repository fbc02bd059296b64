//! One server from its configuration until it is told to stop.

use std::fs;
use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use concilium_client_library::terminal::Failure;
use concilium_mpc::PartyIndex;
use concilium_privacy::{Clock as _, SystemClock};
use concilium_rpc::connect::{ReloadedChannels, incoming, server_builder};
use concilium_rpc::lane::{CompareModels, Lane, LaneConfig};
use concilium_rpc::reload::ReloadableTls;
use concilium_rpc::tls::install_crypto_provider;
use concilium_rpc::v1::budget_server::BudgetServer;
use concilium_rpc::v1::model_store_server::ModelStoreServer;
use concilium_rpc::v1::operations_server::OperationsServer;
use concilium_rpc::v1::prediction_server::PredictionServer;
use tokio::task::JoinSet;

use crate::allocation;
use crate::budget_service::BudgetService;
use crate::calls::CallLayer;
use crate::certificates;
use crate::config::{ServerConfig, port_problem};
use crate::context::{Context, LaneState};
use crate::epochs;
use crate::evaluator;
use crate::history::History;
use crate::ledger;
use crate::ledger_watch::LedgerWatch;
use crate::log;
use crate::metrics;
use crate::model_service::ModelService;
use crate::models::{ModelSets, ModelStore};
use crate::operations_service::OperationsService;
use crate::prediction::PredictionService;
use crate::progress::stall;
use crate::randomness::Randomness;
use crate::release_notes::{self, ReleaseNotes};
use crate::retention;
use crate::self_test::SelfTests;
use crate::task::Tasks;
use crate::waiting::WaitingRoom;
use crate::web::Site;

/// How often the health service looks at the lane.
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);
/// How long requests under way may take after the server was told to stop.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// Runs the server until `stop` finishes. With `new_ledger` a ledger that is missing is started anew
/// whatever else the server holds.
/// All its secrets come from `randomness`.
///
/// # Errors
/// What is wrong with the configuration, the files or the ports, with the remedy.
pub async fn run(
    config: ServerConfig,
    new_ledger: bool,
    randomness: &Randomness,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    allocation::keep_memory();
    // Before anything is served, so that nobody finds a server ready that computes wrongly.
    concilium_mpc::self_check()?;
    let products = concilium_ring::self_check();
    tracing::info!(kernel = products.kernel.name(), "products of matrices");
    for wrong in &products.rejected {
        tracing::error!(
            kernel = wrong.name(),
            "this processor computes wrong products with these instructions; they are not used, and the machine \
             should not be trusted with other work either"
        );
    }
    install_crypto_provider();
    metrics::start()?;
    let tls = ReloadableTls::open(&config.tls_files())?;
    let identity = tls.current().identity().clone();
    let here = identity.server_index().and_then(PartyIndex::new).ok_or_else(|| {
        anyhow!("{identity} cannot run a server; issue a certificate named server-0, server-1 or server-2")
    })?;
    fs::create_dir_all(&config.data_directory)
        .with_context(|| format!("cannot create the data directory {}", config.data_directory.display()))?;
    let tasks = Tasks::load(config.tasks_file.clone(), config.limits.noise_rows_ready, randomness)?;
    let mut stop = std::pin::pin!(stop);
    let ledger = tokio::select! {
        opened = ledger::open(&config, new_ledger) => opened?,
        // A standby that waits for another host's ledger has nothing to end.
        () = &mut stop => return Ok(()),
    };
    let epochs = epochs::begin(ledger.as_ref(), &tasks, &config.tasks_file)?;
    let models = Arc::new(ModelStore::open(here, &config.data_directory.join("models.redb"), epochs)?);
    let model_sets = ModelSets::open(&config.data_directory.join("model-sets.redb"))?;
    let listener = bind("listen", config.listen)?;
    let peer_listener = bind("peer_listen", config.peer_listen)?;
    let site = match config.web.enabled {
        true => Some(Site::new(bind("web.listen", config.web.address(here))?)?),
        false => None,
    };
    let lanes = Lane::open(LaneConfig {
        lanes: 1 + config.limits.lanes,
        listener: peer_listener,
        next_address: config.peers[here.next().number()].clone(),
        tls: tls.clone(),
        tasks: tasks.all().map(|task| task.peer_policy()).collect(),
        models: Arc::clone(&models) as Arc<dyn CompareModels>,
        randomness: Arc::clone(&randomness.link_keys),
    })?;
    let watch = LedgerWatch::load(ledger.as_ref(), tasks.all().map(|task| task.name()))?;
    let context = Arc::new(Context {
        here,
        history: History::new(tasks.all().map(|task| task.name()), SystemClock.now_ms()),
        tasks,
        models,
        model_sets,
        self_tests: SelfTests::default(),
        watch,
        ledger,
        release_notes: ReleaseNotes::default(),
        room: Arc::new(WaitingRoom::new(config.limits.waiting_requests)),
        allowed: config.allowed()?,
        limits: config.limits.clone(),
        tls: tls.clone(),
        clock: Arc::new(SystemClock),
        lane: LaneState::new(config.limits.lanes),
        started: Instant::now(),
    });
    let ending = Arc::new(AtomicBool::new(false));
    let (lane, lane_ended) = evaluator::spawn(lanes, Arc::clone(&context), Arc::clone(&ending))?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let stall_warning = Duration::from_millis(config.observability.stall_warning_ms);
    let mut watch = JoinSet::new();
    watch.spawn(report_health(health, Arc::clone(&context)));
    watch.spawn(certificates::follow(Arc::clone(&context)));
    watch.spawn(stall::watch(Arc::clone(&context), stall_warning));
    watch.spawn(metrics::keep_up());
    watch.spawn(retention::follow(Arc::clone(&context)));
    watch.spawn(release_notes::follow(Arc::clone(&context)));
    if let Some(site) = site {
        tracing::info!(server = %here, page = site.url(), "the operator's page is served");
        watch.spawn(site.serve(Arc::clone(&context), config.peers.clone(), stall_warning)?);
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(concilium_rpc::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let peers = ReloadedChannels::new(&config.peers, tls.clone())?;
    tracing::info!(server = %here, listen = %config.listen, peers = %config.peer_listen, "serving");
    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let serving = server_builder()
        .layer(CallLayer)
        .add_service(PredictionServer::new(PredictionService::new(Arc::clone(&context))))
        .add_service(ModelStoreServer::new(ModelService::new(Arc::clone(&context), peers)))
        .add_service(BudgetServer::new(BudgetService::new(Arc::clone(&context))))
        .add_service(OperationsServer::new(OperationsService::new(Arc::clone(&context))))
        .add_service(health_service)
        // Both versions: Python's stock client speaks only the older one.
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(incoming(listener, &tls)?, async {
            let _ = drained.await;
        });
    let mut serving = std::pin::pin!(serving);
    let mut taken_over = None;
    let served = tokio::select! {
        served = &mut serving => served,
        // Without its lane a server answers nobody: better that its supervisor starts it again.
        _ = lane_ended => Ok(()),
        error = ledger::taken_over(Arc::clone(&context.ledger)) => {
            tracing::error!(server = %here, %error, "another host has taken the ledger over: this one ends");
            taken_over = Some(error);
            Ok(())
        }
        () = &mut stop => {
            tracing::info!(server = %here, "stopping");
            ending.store(true, Ordering::Relaxed);
            drop(drain);
            // A connection that stays open without a call must not keep the server.
            tokio::time::timeout(DRAIN_TIME, serving).await.unwrap_or(Ok(()))
        }
    };
    ending.store(true, Ordering::Relaxed);
    watch.abort_all();
    let joined = tokio::task::spawn_blocking(move || {
        let joined = lane.join();
        release_notes::write_or_tell(&context);
        joined
    })
    .await?;
    log::finish().await;
    joined.map_err(|_| anyhow!("the lane's thread panicked; its message is in the log"))?;
    if let Some(error) = taken_over {
        return Err(error.into());
    }
    served.context("the port for clients stopped")
}

fn bind(key: &str, address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| {
        let (class, problem, remedy) = port_problem(address, &error);
        Failure::message(class, format!("`{key}` {problem}; {remedy}"))
    })
}

/// The services are healthy while both other servers are connected.
async fn report_health(health: tonic_health::server::HealthReporter, context: Arc<Context>) {
    let mut connected = None;
    loop {
        let now = context.lane.is_connected();
        if connected != Some(now) {
            connected = Some(now);
            if now {
                health.set_serving::<PredictionServer<PredictionService>>().await;
            } else {
                health.set_not_serving::<PredictionServer<PredictionService>>().await;
            }
            health.set_serving::<ModelStoreServer<ModelService>>().await;
            health.set_serving::<BudgetServer<BudgetService>>().await;
            health.set_serving::<OperationsServer<OperationsService>>().await;
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}
