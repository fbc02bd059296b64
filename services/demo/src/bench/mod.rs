//! The measuring instrument: times, traffic and memory of one kind of query.
//!
//! [`options`] says what is measured and refuses what can't be, `workload` makes models and inputs, and one
//! of two transports measures: `memory` runs three parties on threads, `servers` three server processes
//! with owners and clients. `report` holds the figures, `tables` sets of measurements.

mod channel;
mod error;
mod memory;
pub mod network;
pub mod options;
mod report;
mod scrape;
mod servers;
mod shaping;
mod system;
mod tables;
mod workload;

use tokio::task::spawn_blocking;

use crate::cluster::ServerProgram;
use crate::error::DemoError;
use crate::progress::say;

pub use error::BenchError;
pub use options::{BenchArguments, BenchOptions, BenchRelease, Transport};
pub use report::{Measurement, OncePerModel, Phases, Times};
pub use shaping::Shape;
pub use system::Machine;
pub use tables::{TableSet, run_tables};
use workload::Workload;

/// Makes one measurement; `program` runs a server. Dropping the future ends the servers and removes the
/// temporary folder.
///
/// # Errors
/// [`BenchError`].
pub async fn run_bench(options: &BenchOptions, program: ServerProgram) -> Result<Measurement, BenchError> {
    let machine = Machine::now();
    say(format_args!("seed {}", options.seed));
    let asked = options.clone();
    let workload = joined(spawn_blocking(move || Workload::new(&asked)).await)?;
    let numbers = (workload.parameters, workload.precision.fractional_bits);
    let measured = match options.transport {
        Transport::Tls => servers::measure(options, workload, program).await?,
        Transport::Memory => {
            let asked = options.clone();
            joined(spawn_blocking(move || memory::measure(&asked, workload)).await)?
        }
    };
    Ok(Measurement::new(options, numbers, machine, &measured))
}

fn joined<T>(outcome: Result<Result<T, BenchError>, tokio::task::JoinError>) -> Result<T, BenchError> {
    outcome.map_err(DemoError::Computation)?
}
