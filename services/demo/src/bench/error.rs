//! Why a measurement ended early.

use concilium_client_library::terminal::{Failure, FailureClass};
use concilium_inference::{EnsembleError, PrepareError};
use concilium_mpc::MpcError;
use concilium_mpc::input::InputError as SharingError;
use concilium_mpc::opening::OpeningError;
use concilium_network::{ImportError, InputError, QuantiseError};
use concilium_privacy::{MechanismError, NoiseError};
use concilium_server::config::ConfigError;
use thiserror::Error;

use crate::error::DemoError;

/// Why a measurement ended early.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// Logits of servers are asked for.
    #[error(
        "--release logits needs --transport memory: a value without noise has no opening in a server, so no \
         configuration of one can ask for it. Measure servers with --release histogram or label, or compare \
         logits in memory"
    )]
    LogitsOverTls,
    /// Several clients of parties in memory are asked for.
    #[error(
        "--clients {0} needs --transport tls: servers put the requests of several clients into one batch, and \
         in memory there are none. Measure one request of as many rows with --batch"
    )]
    ClientsInMemory(usize),
    /// A number is outside its limits.
    #[error("--{option} {found}: the limit is {minimum} to {maximum}; {remedy}")]
    Limit {
        /// The option.
        option: &'static str,
        /// What was given.
        found: f64,
        /// The least.
        minimum: f64,
        /// The most.
        maximum: f64,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The models do not fit in memory.
    #[error(
        "{owners} models of {parameters} weights take about {} MB on the three servers together, and {} MB \
         are free on this machine; take fewer --owners or a smaller --network", needed >> 20, free >> 20
    )]
    Memory {
        /// Owners.
        owners: usize,
        /// Weights and biases of a model.
        parameters: usize,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A network can't be read.
    #[error("network {network}: {source}")]
    Import {
        /// The network.
        network: String,
        /// What is wrong with it.
        source: ImportError,
    },
    /// The network does not fit the fixed-point format.
    #[error("network {network}, inputs from 0 to 1: {source}")]
    Quantise {
        /// The network.
        network: String,
        /// What does not fit.
        source: QuantiseError,
    },
    /// The drawn inputs can't be encoded.
    #[error("the drawn inputs cannot be encoded: {0}")]
    Input(#[from] InputError),
    /// A server would not take the task.
    #[error("the servers would refuse the task of this measurement: {0}")]
    Task(#[from] ConfigError),
    /// The system gives no randomness.
    #[error(transparent)]
    Sharing(#[from] SharingError),
    /// The shares do not make a model.
    #[error(transparent)]
    Model(#[from] PrepareError),
    /// The models do not fit each other.
    #[error(transparent)]
    Ensemble(#[from] EnsembleError),
    /// Policy does not allow the noise.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// There is no noise.
    #[error("drawing noise: {0}")]
    Noise(#[from] NoiseError),
    /// The parties in memory lost each other.
    #[error("the run of three parties failed: {0}")]
    Protocol(#[from] MpcError),
    /// The parties' shares do not fit together.
    #[error(transparent)]
    Opening(#[from] OpeningError),
    /// A party in memory ended early.
    #[error("a party's thread ended early; its message stands above")]
    Party,
    /// A server does not tell its measurements.
    #[error("server {server} does not tell its measurements at {address}: {problem}")]
    Measurements {
        /// Which of the three.
        server: usize,
        /// Where they are.
        address: String,
        /// What happened.
        problem: String,
    },
    /// A server's log lacks a request.
    #[error(
        "server {server}'s log does not tell the times of {missing} of {requests} requests; is RUST_LOG set?"
    )]
    Times {
        /// Which of the three.
        server: usize,
        /// Requests that are missing.
        missing: usize,
        /// Requests that were made.
        requests: usize,
    },
    /// The servers have not done what was asked for, or not once each.
    #[error("the servers count {found} rows where {asked} were asked for; see their logs")]
    Incomplete {
        /// Rows that were asked for.
        asked: usize,
        /// Rows that a server has released.
        found: usize,
    },
    /// Servers, owners or clients failed.
    #[error(transparent)]
    Demo(#[from] Box<DemoError>),
}

impl BenchError {
    /// What kind of failure it is, for the exit code.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::LogitsOverTls
            | Self::ClientsInMemory(_)
            | Self::Limit { .. }
            | Self::Memory { .. }
            | Self::Import { .. }
            | Self::Quantise { .. }
            | Self::Task(_)
            | Self::Mechanism(_) => FailureClass::Input,
            Self::Demo(error) => error.class(),
            _ => FailureClass::Local,
        }
    }
}

impl From<DemoError> for BenchError {
    fn from(error: DemoError) -> Self {
        Self::Demo(Box::new(error))
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        Self::new(error.class(), &error)
    }
}
