//! Three parties on threads of this process: the protocol and its noise, without servers.

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use concilium_inference::release::{noised_labels, noised_sums};
use concilium_inference::{Ensemble, PreparedModel, RingElement, flatten, histogram, logits};
use concilium_mpc::input::{DealtShare, deal};
use concilium_mpc::local::{keys_from_seed, reconstruct};
use concilium_mpc::opening::{open_labels, open_sums};
use concilium_mpc::release::ReleasedComponents;
use concilium_mpc::{MpcError, PairwiseKeys, Party, PartyIndex, Shares, Stage, Traffic};
use concilium_network::{Ring, quantise};
use concilium_privacy::{NoisePool, OpenDpNoise};
use concilium_ring::{Z32, Z64};
use ndarray::Array2;
use rand::rngs::SysRng;

use super::channel::BenchChannel;
use super::error::BenchError;
use super::options::{BenchOptions, BenchRelease};
use super::report::{Measured, OncePerModel, Phases, milliseconds};
use super::system;
use super::workload::{MECHANISM, WARM_UP, Workload};
use crate::progress::bar;

/// How long the noise of the first requests may take to be drawn.
const NOISE_PATIENCE: Duration = Duration::from_secs(30);

/// What one party gives for one request.
enum Output<E: RingElement> {
    /// Its shares of the logits.
    Logits(Shares<E>),
    /// Its components of something noised.
    Released(ReleasedComponents),
}

/// One party's part of one request.
struct Outcome<E: RingElement> {
    output: Output<E>,
    began: Instant,
    ended: Instant,
    traffic: Traffic,
    phases: Phases,
}

/// Measures as `options` say.
///
/// # Errors
/// [`BenchError`].
pub(crate) fn measure(options: &BenchOptions, workload: Workload) -> Result<Measured, BenchError> {
    match options.ring {
        Ring::Bits64 => in_ring::<Z64>(options, workload),
        Ring::Bits32 => in_ring::<Z32>(options, workload),
    }
}

fn in_ring<E: RingElement>(options: &BenchOptions, workload: Workload) -> Result<Measured, BenchError> {
    let Workload { owners, domain, precision, rows, import, .. } = workload;
    let models = owners.len();
    let mut once =
        OncePerModel { import_ms: milliseconds(import) / models as f64, ..OncePerModel::default() };
    let progress = bar("sharing", models, "owners' models");
    let mut shared: [Vec<PreparedModel>; 3] = Default::default();
    let (mut features, mut classes) = (0, 0);
    for owner in owners {
        let begin = Instant::now();
        let fixed = quantise(&owner.network, &domain, precision)
            .map_err(|source| BenchError::Quantise { network: options.network.to_string(), source })?;
        drop(owner);
        once.quantise_ms += milliseconds(begin.elapsed());
        let begin = Instant::now();
        let dealt = deal(&flatten::<E>(&fixed), &mut SysRng)?;
        once.sharing_ms += milliseconds(begin.elapsed());
        let begin = Instant::now();
        let architecture = fixed.architecture();
        (features, classes) = (architecture.input_features, architecture.classes);
        for (models, share) in shared.iter_mut().zip(&dealt) {
            models.push(PreparedModel::new(architecture.clone(), &share.own, &share.next)?);
        }
        once.packing_ms = Some(once.packing_ms.unwrap_or(0.0) + milliseconds(begin.elapsed()) / 3.0);
        progress.inc(1);
    }
    progress.finish_and_clear();
    once.quantise_ms /= models as f64;
    once.sharing_ms /= models as f64;
    once.packing_ms = once.packing_ms.map(|sum| sum / models as f64);
    once.model_bytes = shared[0].first().map(|model| model.memory_bytes() as u64);
    let bits = precision.fractional_bits;
    let ensemble = |models: &[PreparedModel]| Ensemble::<E>::of_prepared(models, features, classes, bits);
    let [first, second, third] = &shared;
    let ensembles = [ensemble(first)?, ensemble(second)?, ensemble(third)?];
    drop(shared);

    let mut measured = Measured { once, ..Measured::default() };
    system::forget_peak_memory();
    thread::scope(|scope| {
        let (results, outcomes) = mpsc::channel();
        let mut jobs = Vec::new();
        let parties = PartyIndex::ALL.into_iter().zip(BenchChannel::triple(options.shape));
        let keys = keys_from_seed(options.seed);
        for ((index, channel), (ensemble, keys)) in parties.zip(ensembles.into_iter().zip(keys)) {
            let noise = noise_pool(options, classes)?;
            let (job, shares) = mpsc::channel::<DealtShare>();
            jobs.push(job);
            let (results, release, batch) = (results.clone(), options.release, options.batch);
            scope.spawn(move || {
                let mut seat = Seat { index, keys, ensemble, noise, release, batch, channel: Some(channel) };
                for (session, share) in shares.iter().enumerate() {
                    let outcome = seat.answer(session as u64, &share);
                    let failed = outcome.is_err();
                    // Nobody listens any more when another party has failed.
                    if results.send((index.number(), outcome)).is_err() || failed {
                        break;
                    }
                }
            });
        }
        drop(results);
        let progress = bar("measuring", options.repeat, "requests");
        let mut measured_since = Instant::now();
        for request in 0..WARM_UP + options.repeat {
            if request == WARM_UP {
                measured_since = Instant::now();
            }
            let begin = Instant::now();
            let encoded = domain.encode(rows.view(), bits)?;
            let encoded: Vec<_> = encoded.into_iter().map(E::from_signed).collect();
            for (job, share) in jobs.iter().zip(deal(&encoded, &mut SysRng)?) {
                job.send(share).map_err(|_| BenchError::Party)?;
            }
            let mut answers = [None, None, None];
            for _ in 0..3 {
                let (party, outcome) = outcomes.recv().map_err(|_| BenchError::Party)?;
                answers[party] = Some(outcome?);
            }
            let [Some(first), Some(second), Some(third)] = answers else { return Err(BenchError::Party) };
            let parts = [first, second, third];
            let began = parts.iter().map(|part| part.began).min();
            let ended = parts.iter().map(|part| part.ended).max();
            let server = ended.zip(began).map_or(Duration::ZERO, |(ended, began)| ended - began);
            let (traffic, phases) =
                (parts.each_ref().map(|part| part.traffic.clone()), parts.each_ref().map(|part| part.phases));
            open(parts, options.batch, classes)?;
            let client = begin.elapsed();
            if request == 0 {
                measured.first_query_ms = milliseconds(client);
            }
            if request < WARM_UP {
                continue;
            }
            measured.server_ms.push(milliseconds(server));
            measured.client_ms.push(milliseconds(client));
            measured.note_batch(&traffic, &phases);
            progress.inc(1);
        }
        measured.elapsed = measured_since.elapsed();
        progress.finish_and_clear();
        Ok::<_, BenchError>(())
    })?;
    // The three parties are one process.
    measured.peak_rss_bytes = [system::peak_memory(None).unwrap_or(0).div_ceil(3); 3];
    Ok(measured)
}

/// Noise for some requests ahead, as servers keep it.
fn noise_pool(options: &BenchOptions, classes: usize) -> Result<Option<NoisePool>, BenchError> {
    if options.release == BenchRelease::Logits {
        return Ok(None);
    }
    let rows = NonZeroUsize::new(2 * options.batch).unwrap_or(NonZeroUsize::MIN);
    let pool = NoisePool::new(OpenDpNoise::new(MECHANISM)?, classes, rows)?;
    let begin = Instant::now();
    // A source that fails says so to whoever takes from it.
    while pool.ready() < rows.get() && begin.elapsed() < NOISE_PATIENCE {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(Some(pool))
}

/// One party with everything that it needs for a request.
struct Seat<E: RingElement> {
    index: PartyIndex,
    keys: PairwiseKeys,
    ensemble: Ensemble<E>,
    noise: Option<NoisePool>,
    release: BenchRelease,
    batch: usize,
    /// Absent while a request runs, and for good after a failure.
    channel: Option<BenchChannel>,
}

impl<E: RingElement> Seat<E> {
    fn answer(&mut self, session: u64, share: &DealtShare) -> Result<Outcome<E>, BenchError> {
        let began = Instant::now();
        let mut channel = self.channel.take().ok_or(BenchError::Party)?;
        channel.start_clock();
        let (rows, features) = (self.batch, self.ensemble.features());
        let matrix = |elements: Vec<E>| {
            Array2::from_shape_vec((rows, features), elements)
                .expect("expanding gives as many elements as were asked for")
        };
        let count = rows * features;
        let input = Shares::new(matrix(share.own.expand(count)?), matrix(share.next.expand(count)?));
        let mut noise = Vec::new();
        if let Some(pool) = &self.noise {
            for _ in 0..rows {
                noise.extend_from_slice(pool.take()?.values());
            }
        }
        let mut party = Party::new(self.index, session, &self.keys, channel);
        let output = self.evaluate(&mut party, &input, &noise)?;
        let traffic = party.traffic().clone();
        let mut channel = party.into_channel();
        let phases = channel.stop_clock();
        self.channel = Some(channel);
        Ok(Outcome { output, began, ended: Instant::now(), traffic, phases })
    }

    fn evaluate(
        &self,
        party: &mut Party<BenchChannel>,
        input: &Shares<E>,
        noise: &[i64],
    ) -> Result<Output<E>, MpcError> {
        Ok(match self.release {
            BenchRelease::Logits => {
                let logits = logits(party, &self.ensemble, input)?;
                party.enter(Stage::Noise);
                Output::Logits(logits)
            }
            BenchRelease::Histogram => {
                let votes = histogram(party, &self.ensemble, input)?;
                Output::Released(noised_sums(party, votes, noise)?)
            }
            BenchRelease::Label => {
                let votes = histogram(party, &self.ensemble, input)?;
                Output::Released(noised_labels(party, votes, noise)?)
            }
        })
    }
}

/// What a client does with three answers.
fn open<E: RingElement>(parts: [Outcome<E>; 3], rows: usize, classes: usize) -> Result<(), BenchError> {
    let [first, second, third] = parts.map(|part| part.output);
    match (first, second, third) {
        (Output::Logits(first), Output::Logits(second), Output::Logits(third)) => {
            // No more than the time that it takes is wanted.
            std::hint::black_box(reconstruct(&[first, second, third]));
        }
        (Output::Released(first), Output::Released(second), Output::Released(third)) => {
            let parts = [first, second, third];
            if parts[0].own.len() == 2 * rows {
                open_labels(&parts, rows, classes)?;
            } else {
                open_sums(&parts, rows * classes)?;
            }
        }
        _ => return Err(BenchError::Party),
    }
    Ok(())
}
