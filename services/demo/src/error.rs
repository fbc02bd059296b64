//! Why a demonstration ended early.

use std::io;
use std::path::PathBuf;

use concilium_client_library::ServerError;
use concilium_client_library::predict::PredictFailure;
use concilium_client_library::task::TaskError as AnnouncedError;
use concilium_client_library::terminal::{Failure, FailureClass};
use concilium_owner::ShareError;
use concilium_rpc::connect::ConnectError;
use thiserror::Error;

use crate::cluster::ClusterError;
use crate::data::DataError;
use crate::simulation::SimulationError;
use crate::task::TaskError;

/// Why a demonstration ended early.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The folder for certificates, logs and ledgers can't be used.
    #[error("cannot work in {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The reason that the system gives.
        source: io::Error,
    },
    /// The folder to keep holds something.
    #[error("{} is not empty; name a folder that is absent or empty with --keep", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
    },
    /// Models and inputs can't be used together.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The task can't be configured.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The servers can't be run.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A certificate can't be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The servers do not announce the task.
    #[error(transparent)]
    Announced(#[from] AnnouncedError),
    /// An owner can't share its model.
    #[error("owner {owner}: {source}")]
    Share {
        /// The owner.
        owner: String,
        /// Why.
        source: Box<ShareError>,
    },
    /// The client gets no answer.
    #[error(transparent)]
    Predict(#[from] PredictFailure),
    /// Not all owners took part in an answer.
    #[error("{voted} of {owners} owners' models voted on row {row}; see the servers' logs")]
    OwnersMissing {
        /// Models that voted.
        voted: u32,
        /// Owners that shared a model.
        owners: usize,
        /// First row of the request.
        row: usize,
    },
    /// A server does not tell its budget.
    #[error("reading the budget: {0}")]
    Budget(#[from] ServerError),
    /// A server's ledger does not know the task.
    #[error("server {server} tells no budget of task {task}; see its log")]
    NoBudget {
        /// The server.
        server: usize,
        /// The task.
        task: String,
    },
    /// The noise can't be simulated.
    #[error("simulating the noise: {0}")]
    Simulation(#[from] SimulationError),
    /// A thread of this program panicked.
    #[error("a computation of this program failed: {0}")]
    Computation(#[from] tokio::task::JoinError),
    /// A file can't be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason that the system gives.
        source: io::Error,
    },
}

impl DemoError {
    /// What kind of failure it is, for the exit code.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Data(_) | Self::Task(_) | Self::FolderInUse { .. } => FailureClass::Input,
            Self::Announced(error) => error.class(),
            Self::Share { source, .. } => source.class(),
            Self::Predict(failure) => failure.class(),
            Self::Budget(error) => error.class(),
            Self::OwnersMissing { .. } | Self::NoBudget { .. } => FailureClass::Refused,
            Self::Folder { .. }
            | Self::Cluster(_)
            | Self::Connect(_)
            | Self::Simulation(_)
            | Self::Computation(_)
            | Self::Write { .. } => FailureClass::Local,
        }
    }
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        Self::new(error.class(), &error)
    }
}
