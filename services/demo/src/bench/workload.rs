//! Owners' models and the rows that clients ask about.

use std::sync::Arc;
use std::time::{Duration, Instant};

use concilium_network::{InputDomain, Precision, choose_fractional_bits};
use concilium_privacy::{Mechanism, NoiseScale};
use ndarray::Array2;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::error::BenchError;
use super::options::BenchOptions;
use super::system;
use crate::data::Owner;
use crate::progress::bar;

/// Requests of each client before the clock starts: connections, caches and allocators settle.
pub(crate) const WARM_UP: usize = 2;

/// Noise of every measurement. Its size does not change the work.
pub(crate) const MECHANISM: Mechanism =
    Mechanism::DiscreteGaussian { sigma: NoiseScale::from_millionths(5 * NoiseScale::UNITS_PER_ONE) };

/// Bytes that a weight takes on the three servers together, with room for what is being uploaded.
const BYTES_PER_PARAMETER: u64 = 3 * 2 * 16;

/// What is measured on.
pub(crate) struct Workload {
    pub(crate) owners: Vec<Arc<Owner>>,
    pub(crate) domain: InputDomain,
    pub(crate) precision: Precision,
    /// The rows of every request, `[batch, features]`.
    pub(crate) rows: Array2<f64>,
    pub(crate) classes: usize,
    /// Weights and biases of a model.
    pub(crate) parameters: usize,
    /// Time in which all models were imported.
    pub(crate) import: Duration,
}

impl Workload {
    /// Makes or reads the models.
    ///
    /// # Errors
    /// [`BenchError::Import`], [`BenchError::Quantise`], [`BenchError::Memory`].
    pub(crate) fn new(options: &BenchOptions) -> Result<Self, BenchError> {
        let name = || options.network.to_string();
        if let Some(parameters) = options.network.parameters() {
            check_memory(options.owners, parameters)?;
        }
        let progress = bar("importing", options.owners, "owners' models");
        let mut owners = Vec::with_capacity(options.owners);
        let mut import = Duration::ZERO;
        for index in 0..options.owners {
            let written = options.network.write(options.seed.wrapping_add(index as u64));
            let begin = Instant::now();
            let network = options.network.read(written.as_deref());
            let network = network.map_err(|source| BenchError::Import { network: name(), source })?;
            import += begin.elapsed();
            if index == 0 {
                check_memory(options.owners, network.parameter_count())?;
            }
            owners.push(Arc::new(Owner { name: format!("owner-{index:03}"), file: name(), network }));
            progress.inc(1);
        }
        progress.finish_and_clear();
        let first = &owners[0].network;
        let (classes, parameters) = (first.classes(), first.parameter_count());
        let shape = first.input_shape().to_vec();
        let domain = InputDomain::new(shape, vec![0.0], vec![1.0])?;
        let networks = owners.iter().map(|owner| &owner.network);
        let fractional_bits = choose_fractional_bits(options.ring, networks, &domain)
            .map_err(|source| BenchError::Quantise { network: name(), source })?;
        let mut random = StdRng::seed_from_u64(options.seed ^ u64::MAX);
        let rows = Array2::from_shape_simple_fn((options.batch, domain.features()), || random.random());
        let precision = Precision { ring: options.ring, fractional_bits };
        Ok(Workload { owners, domain, precision, rows, classes, parameters, import })
    }
}

fn check_memory(owners: usize, parameters: usize) -> Result<(), BenchError> {
    let needed = BYTES_PER_PARAMETER * owners as u64 * parameters as u64;
    match system::free_memory() {
        Some(free) if free < needed => Err(BenchError::Memory { owners, parameters, needed, free }),
        _ => Ok(()),
    }
}
