//! One server from its configuration until it is told to stop.

use std::fs;
use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use concilium_mpc::PartyIndex;
use concilium_privacy::RedbLedger;
use concilium_rpc::connect::{connect_lazily, incoming, server_builder};
use concilium_rpc::lane::{CompareModels, Lane, LaneConfig};
use concilium_rpc::tls::install_crypto_provider;
use concilium_rpc::v1::budget_server::BudgetServer;
use concilium_rpc::v1::model_store_server::ModelStoreServer;
use concilium_rpc::v1::prediction_server::PredictionServer;

use crate::budget_service::BudgetService;
use crate::config::ServerConfig;
use crate::context::{Context, LaneState};
use crate::evaluator;
use crate::model_service::ModelService;
use crate::models::ModelStore;
use crate::prediction::PredictionService;
use crate::task::Tasks;
use crate::waiting::WaitingRoom;

/// How often the health service looks at the lane.
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);
/// How long requests under way may take after the server was told to stop.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// Runs the server until `stop` finishes.
///
/// # Errors
/// What is wrong with the configuration, the files or the ports, with the remedy.
pub async fn run(config: ServerConfig, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    install_crypto_provider();
    let tls = config.tls_files().load()?;
    let here = tls.identity().server_index().and_then(PartyIndex::new).ok_or_else(|| {
        anyhow!(
            "{} cannot run a server; issue a certificate named server-0, server-1 or server-2",
            tls.identity()
        )
    })?;
    fs::create_dir_all(&config.data_directory)
        .with_context(|| format!("cannot create the data directory {}", config.data_directory.display()))?;
    let tasks = Tasks::load(config.tasks_file.clone(), config.limits.noise_rows_ready)?;
    let models = Arc::new(ModelStore::open(here, &config.data_directory.join("models.redb"))?);
    let ledger = RedbLedger::open_or_create(&config.data_directory.join("ledger.redb"))?;
    let listener = bind("listen", config.listen)?;
    let peer_listener = bind("peer_listen", config.peer_listen)?;
    let lane = Lane::new(LaneConfig {
        lane: 0,
        listener: peer_listener,
        next_address: config.peers[here.next().number()].clone(),
        tls: tls.clone(),
        tasks: tasks.all().map(|task| task.peer_policy()).collect(),
        models: Arc::clone(&models) as Arc<dyn CompareModels>,
    })?;
    let context = Arc::new(Context {
        here,
        tasks,
        models,
        ledger: Arc::new(ledger),
        room: Arc::new(WaitingRoom::new(config.limits.waiting_requests)),
        allowed: config.allowed()?,
        limits: config.limits.clone(),
        lane: LaneState::default(),
        started: Instant::now(),
    });
    let ending = Arc::new(AtomicBool::new(false));
    let (lane, lane_ended) = evaluator::spawn(lane, Arc::clone(&context), Arc::clone(&ending))?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let watch = tokio::spawn(report_health(health, Arc::clone(&context)));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(concilium_rpc::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let peers = connect_lazily(&config.peers, &tls)?;
    tracing::info!(server = %here, listen = %config.listen, peers = %config.peer_listen, "serving");
    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let serving = server_builder(&tls)?
        .add_service(PredictionServer::new(PredictionService::new(Arc::clone(&context))))
        .add_service(ModelStoreServer::new(ModelService::new(Arc::clone(&context), peers)))
        .add_service(BudgetServer::new(BudgetService::new(Arc::clone(&context), tls.clone())))
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming(listener)?, async {
            let _ = drained.await;
        });
    let mut serving = std::pin::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        // Without its lane a server answers nobody: better that its supervisor starts it again.
        _ = lane_ended => Ok(()),
        () = stop => {
            tracing::info!(server = %here, "stopping");
            ending.store(true, Ordering::Relaxed);
            drop(drain);
            // A connection that stays open without a call must not keep the server.
            tokio::time::timeout(DRAIN_TIME, serving).await.unwrap_or(Ok(()))
        }
    };
    ending.store(true, Ordering::Relaxed);
    watch.abort();
    let joined = tokio::task::spawn_blocking(move || lane.join()).await?;
    joined.map_err(|_| anyhow!("the lane's thread panicked; its message is in the log"))?;
    served.context("the port for clients stopped")
}

fn bind(key: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .with_context(|| format!("cannot listen on `{key}` = {address}; is another program using the port?"))
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
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}
