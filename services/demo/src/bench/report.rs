//! The figures of a measurement, as text and as JSON.

use std::io::Write;
use std::time::Duration;

use concilium_client_library::terminal::{Failure, Output};
use concilium_mpc::Traffic;
use concilium_network::Ring;
use serde::Serialize;

use super::options::{BenchOptions, BenchRelease, Transport};
use super::system::Machine;
use crate::figures::percentile;

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Percentiles by the nearest rank, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The least.
    pub min: f64,
}

impl Times {
    fn new(values: &[f64]) -> Self {
        Times { p50: percentile(values, 0.5), p95: percentile(values, 0.95), min: percentile(values, 0.0) }
    }
}

/// Where the time of a batch goes on one server, in milliseconds. Waiting is in no other phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Phases {
    /// Agreeing on the batch, expanding its shares, taking noise.
    pub preparation: f64,
    /// Products and rescaling.
    pub linear: f64,
    /// Signs, selections, and every model's vote.
    pub comparison: f64,
    /// Noise and what is computed after it: the components that the client gets.
    pub opening: f64,
    /// The durable charge, the barrier and the release. Zero in memory.
    pub ledger: f64,
    /// Waiting for messages of the other servers.
    pub waiting: f64,
}

impl Phases {
    /// Adds the time of a step or stage of this name, of which a part was spent waiting.
    pub(crate) fn add(&mut self, name: &str, took: Duration, waited: Duration) {
        let (took, waited) = (milliseconds(took), milliseconds(waited));
        self.waiting += waited;
        let phase = match name {
            "linear" => &mut self.linear,
            "comparison" | "selection" | "votes" => &mut self.comparison,
            "noise" | "label" => &mut self.opening,
            "ledger-commit" | "barrier" | "release" => &mut self.ledger,
            _ => &mut self.preparation,
        };
        *phase += (took - waited).max(0.0);
    }

    fn each(&mut self, mut change: impl FnMut(&mut f64, usize)) {
        let Phases { preparation, linear, comparison, opening, ledger, waiting } = self;
        let all = [preparation, linear, comparison, opening, ledger, waiting];
        all.into_iter().enumerate().for_each(|(place, value)| change(value, place));
    }

    /// The phases in the order of their fields.
    pub(crate) fn values(mut self) -> [f64; 6] {
        let mut values = [0.0; 6];
        self.each(|value, place| values[place] = *value);
        values
    }

    fn plus(mut self, other: Phases) -> Self {
        let other = other.values();
        self.each(|value, place| *value += other[place]);
        self
    }

    pub(crate) fn over(mut self, batches: f64) -> Self {
        self.each(|value, _| *value /= batches);
        self
    }
}

/// Means over the models of what is done once for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct OncePerModel {
    /// Reading the ONNX file, in milliseconds.
    pub import_ms: f64,
    /// Range analysis and rounding, in milliseconds. Over TLS a part of sharing.
    pub quantise_ms: f64,
    /// Dealing the shares, in milliseconds; over TLS from a connected owner to a model that is ready on three servers, some
    /// owners at a time.
    pub sharing_ms: f64,
    /// Preparing a share for evaluation on one server, in milliseconds. Over TLS a part of sharing.
    pub packing_ms: Option<f64>,
    /// Bytes of memory that a model's share takes on one server.
    pub model_bytes: Option<u64>,
}

/// What a transport has measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) server_ms: Vec<f64>,
    pub(crate) client_ms: Vec<f64>,
    /// The time in which all measured requests were made.
    pub(crate) elapsed: Duration,
    pub(crate) first_query_ms: f64,
    pub(crate) batches: u64,
    pub(crate) rounds: u64,
    /// Sums over all batches.
    pub(crate) bytes: [u64; 3],
    pub(crate) messages: [u64; 3],
    pub(crate) phases: [Phases; 3],
    pub(crate) peak_rss_bytes: [u64; 3],
    pub(crate) once: OncePerModel,
    pub(crate) repeated_attempts: u64,
}

impl Measured {
    /// Adds a batch of three parties.
    pub(crate) fn note_batch(&mut self, traffic: &[Traffic; 3], phases: &[Phases; 3]) {
        self.batches += 1;
        for party in 0..3 {
            self.rounds = self.rounds.max(u64::from(traffic[party].rounds));
            self.bytes[party] += traffic[party].bytes_sent;
            self.messages[party] += traffic[party].messages_sent;
            self.phases[party] = self.phases[party].plus(phases[party]);
        }
    }
}

/// The figures of one measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The network.
    pub network: String,
    /// Weights and biases of a model.
    pub parameters: usize,
    /// Owners, each with one model.
    pub owners: usize,
    /// Rows of one request.
    pub batch: usize,
    /// What left the servers.
    pub release: BenchRelease,
    /// Where the parties were.
    pub transport: Transport,
    /// One-way delay of the links between the servers.
    pub delay_ms: f64,
    /// Speed of these links, for each direction; null for no limit.
    pub bandwidth_mbit: Option<f64>,
    /// Clients at a time.
    pub clients: usize,
    /// Measured requests of each.
    pub repeat: usize,
    /// Seed of weights and inputs.
    pub seed: u64,
    /// Width of the ring.
    pub ring_bits: Ring,
    /// Fractional bits of the fixed-point numbers.
    pub fractional_bits: u32,
    /// Whether ledgers were charged durably before each release.
    pub ledger: bool,
    /// From the first share received to the last result share handed over.
    pub server_ms: Times,
    /// From rows to an opened answer.
    pub client_ms: Times,
    /// Rows answered in each second, by all clients together.
    pub queries_per_second: f64,
    /// Batches that the requests were evaluated in.
    pub batches: u64,
    /// Sequential exchanges of one batch.
    pub rounds: u64,
    /// Protocol bytes that servers 0, 1 and 2 sent for one batch, mean.
    pub bytes_per_party: [u64; 3],
    /// Protocol messages that servers 0, 1 and 2 sent for one batch, mean.
    pub messages_per_party: [u64; 3],
    /// Most memory that servers 0, 1 and 2 held; in memory a third of the process each. 0 if unknown.
    pub peak_rss_bytes: [u64; 3],
    /// Where the time of a batch went on servers 0, 1 and 2, mean.
    pub phases_ms: [Phases; 3],
    /// What is done once for each model.
    pub once_per_model: OncePerModel,
    /// The very first request, client's side.
    pub first_query_ms: f64,
    /// Calls that were repeated, because the servers were busy for instance.
    pub repeated_attempts: u64,
    /// Where it was measured.
    pub machine: Machine,
}

impl Measurement {
    pub(crate) fn new(
        options: &BenchOptions,
        (parameters, fractional_bits): (usize, u32),
        machine: Machine,
        measured: &Measured,
    ) -> Self {
        let batches = measured.batches.max(1);
        let queries = measured.client_ms.len() * options.batch;
        Measurement {
            network: options.network.to_string(),
            parameters,
            owners: options.owners,
            batch: options.batch,
            release: options.release,
            transport: options.transport,
            delay_ms: milliseconds(options.shape.delay),
            bandwidth_mbit: options.shape.bits_per_second.map(|bits| bits / 1e6),
            clients: options.clients,
            repeat: options.repeat,
            seed: options.seed,
            ring_bits: options.ring,
            fractional_bits,
            ledger: options.transport == Transport::Tls,
            server_ms: Times::new(&measured.server_ms),
            client_ms: Times::new(&measured.client_ms),
            queries_per_second: queries as f64 / measured.elapsed.as_secs_f64().max(1e-9),
            batches: measured.batches,
            rounds: measured.rounds,
            bytes_per_party: measured.bytes.map(|sum| sum.div_ceil(batches)),
            messages_per_party: measured.messages.map(|sum| sum.div_ceil(batches)),
            peak_rss_bytes: measured.peak_rss_bytes,
            phases_ms: measured.phases.map(|phases| phases.over(batches as f64)),
            once_per_model: measured.once,
            first_query_ms: measured.first_query_ms,
            repeated_attempts: measured.repeated_attempts,
            machine,
        }
    }

    /// Writes the figures as aligned text.
    ///
    /// # Errors
    /// [`Failure`] if they can't be written.
    pub fn print<W: Write>(&self, output: &mut Output<W>) -> Result<(), Failure> {
        output.line(format_args!(
            "{}: {}, {}, {}, {} released, {}, {}",
            self.network,
            counted(self.parameters, "parameter"),
            counted(self.owners, "owner"),
            counted(self.batch, "row"),
            self.release.name(),
            self.transport.name(),
            self.link(),
        ))?;
        output.line(format_args!(
            "{} with {} each, in {} batches; seed {}, ring of {} bits, {} fractional bits; {}\n",
            counted(self.clients, "client"),
            counted(self.repeat, "request"),
            self.batches,
            self.seed,
            self.ring_bits,
            self.fractional_bits,
            if self.ledger { "noise and ledgers included" } else { "no ledgers" },
        ))?;
        let row = |cells: &[String]| cells.to_vec();
        let times =
            |name: &str, times: Times| row(&[name.to_owned(), ms(times.p50), ms(times.p95), ms(times.min)]);
        output.table(&[
            row(&["time of a request, ms", "p50", "p95", "min"].map(str::to_owned)),
            times("  servers", self.server_ms),
            times("  client", self.client_ms),
        ])?;
        output.line(format_args!("\nqueries per second  {:.1}", self.queries_per_second))?;
        output.line(format_args!("rounds              {}\n", self.rounds))?;
        let per = |name: &str, values: [u64; 3]| {
            let values = values.map(|value| value.to_string());
            [vec![name.to_owned()], values.to_vec()].concat()
        };
        output.table(&[
            row(&["of one batch", "server 0", "server 1", "server 2"].map(str::to_owned)),
            per("  bytes sent", self.bytes_per_party),
            per("  messages sent", self.messages_per_party),
            per("  peak memory, MB", self.peak_rss_bytes.map(|bytes| bytes >> 20)),
        ])?;
        output.line("")?;
        let names = ["preparation", "linear", "comparison", "opening", "ledger", "waiting"];
        let mut table =
            vec![row(&["phases of a batch, ms", "server 0", "server 1", "server 2"].map(str::to_owned))];
        let values = self.phases_ms.map(Phases::values);
        for (place, name) in names.into_iter().enumerate() {
            let cells = values.iter().map(|phases| ms(phases[place]));
            table.push(std::iter::once(format!("  {name}")).chain(cells).collect());
        }
        output.table(&table)?;
        let OncePerModel { import_ms, quantise_ms, sharing_ms, packing_ms, model_bytes } =
            self.once_per_model;
        let packing = packing_ms.map_or_else(|| "in sharing".to_owned(), |time| format!("{} ms", ms(time)));
        output.line(format_args!(
            "\nonce for each model: import {} ms, quantise {} ms, share {} ms, pack {packing}{}; first request {} ms",
            ms(import_ms),
            ms(quantise_ms),
            ms(sharing_ms),
            model_bytes.map_or_else(String::new, |bytes| format!(", {bytes} bytes on each server")),
            ms(self.first_query_ms),
        ))?;
        if self.repeated_attempts > 0 {
            output.line(format_args!("note: {} calls were repeated", self.repeated_attempts))?;
        }
        Ok(())
    }

    /// The link between the servers, for people.
    pub(crate) fn link(&self) -> String {
        let speed = self.bandwidth_mbit.map(|speed| format!("{speed} Mbit/s"));
        let delay = (self.delay_ms > 0.0).then(|| format!("{} ms delay", self.delay_ms));
        let parts: Vec<_> = [delay, speed].into_iter().flatten().collect();
        if parts.is_empty() { "direct links".to_owned() } else { parts.join(", ") }
    }
}

fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Milliseconds with three significant digits, as far as they mean something.
pub(crate) fn ms(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        _ if value < 10.0 => format!("{value:.2}"),
        _ if value < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
