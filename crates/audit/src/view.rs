//! What one corrupted server and a client know together of a release.

use concilium_mpc::{
    PartyIndex,
    opening::{open_confident_labels, open_labels, open_sums},
    release::ReleasedComponents,
};
use concilium_privacy::{Mechanism, NanoRho, Release, TaskPolicy, convert};

use crate::{
    AuditError,
    event::Sample,
    world::{Held, Released, Servers, Votes, World, evaluate, is_close},
};

/// Most comparisons that the models of a unit may need for one row.
const MOST_COMPARISONS: usize = 20_000;

/// Comparisons for one row up to which further models are added.
const COMPARISONS: usize = 256;

/// Is added to what is known of a close row, far beyond any noise: a query is known, too.
const CLOSE: i64 = 1 << 50;

/// Most comparisons, and most rows, of one batch.
const BATCH: (usize, usize) = (1 << 20, 1 << 12);

/// Samples of what one corrupted server knows, in both ensembles.
#[derive(Debug, Clone)]
pub struct View {
    /// What is looked at.
    pub name: &'static str,
    /// The server.
    pub corrupted: PartyIndex,
    /// Rows that make one sample.
    pub rows: u32,
    /// What is charged for them.
    pub rho: NanoRho,
    /// Samples of either ensemble.
    pub samples: [Vec<Sample>; 2],
}

/// One part of a release that is paid for, with the votes at which most is to be seen.
pub(crate) struct Probe {
    /// Names of its views, of one row and of two.
    names: [&'static str; 2],
    released: Released,
    votes: Votes,
    /// What a row costs.
    rho: NanoRho,
}

/// What a server knows of one row.
#[derive(Clone, Copy)]
struct Row {
    sample: Sample,
    /// What two rows are compared by.
    compared: i64,
}

impl Row {
    /// What is known but for the own noise.
    fn query(self) -> i64 {
        if self.sample.known > CLOSE / 2 { CLOSE } else { 0 }
    }
}

impl Probe {
    /// All probes of a policy's release.
    pub(crate) fn all(policy: &TaskPolicy) -> Result<Vec<Self>, AuditError> {
        let prices = policy.row_prices()?;
        let unit = policy.votes_of_one_unit();
        let comparisons = unit as usize * comparisons(policy.bins);
        if comparisons > MOST_COMPARISONS {
            let (votes, classes, limit) = (unit, policy.bins, MOST_COMPARISONS);
            return Err(AuditError::TooLarge { votes, classes, comparisons, limit });
        }
        let even = Votes { classes: policy.bins, unit, others: [1, 1], switching: 0 };
        let one = |names, released, votes| vec![Self { names, released, votes, rho: prices.total() }];
        Ok(match (policy.release, policy.threshold) {
            (Release::Histogram, _) => one(["counts", "two rows of counts"], Released::Counts, even),
            (Release::MeanProbability, _) => {
                one(["probabilities", "two rows of probabilities"], Released::Probabilities, even)
            }
            (Release::Label, _) => one(["label", "two labels"], Released::Labels, label_votes(policy)),
            (Release::ConfidentLabel, Some(threshold)) => {
                // With and without the unit's votes the largest count is 2 unit + reach and unit + reach,
                // and in close rows higher by reach. What is tested is a distance, so the threshold is
                // put where the unit decides in close rows.
                let reach = (0.7 * width(threshold.mechanism)).round().min(12.0) as u32;
                let test = Self {
                    names: ["threshold test", "two threshold tests"],
                    released: Released::Test(2 * (unit + reach)),
                    votes: Votes { others: [unit + reach, 0], switching: reach, ..even },
                    rho: prices.threshold,
                };
                let names = ["confident label", "two confident labels"];
                let mut probes = one(names, Released::ConfidentLabels(1), label_votes(policy));
                probes.insert(0, test);
                probes
            }
            (release, _) => return Err(AuditError::Release { release }),
        })
    }

    /// Runs both ensembles and gives the views of each corrupted server: of one row, and of two that
    /// were released one after the other.
    pub(crate) fn run(
        &self,
        policy: &TaskPolicy,
        releases: usize,
        corrupted: &[PartyIndex],
        seed: u64,
        servers: &Servers,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<View>, AuditError> {
        let batch = (BATCH.0 / (self.votes.models() * comparisons(policy.bins))).clamp(2, BATCH.1) / 2 * 2;
        // The unit votes one way and the other in turn, so an even number.
        let releases = releases.next_multiple_of(2);
        let mut rows =
            [0, 1].map(|_| corrupted.iter().map(|_| Vec::with_capacity(releases)).collect::<Vec<_>>());
        let mut session = seed;
        for (ensemble, (rows, unit)) in rows.iter_mut().zip([[0, 1], [1, 0]]).enumerate() {
            let world = World::new(self.votes, unit, seed)?;
            let mut done = 0;
            while done < releases {
                let count = batch.min(releases - done);
                session = session.wrapping_add(1);
                let held = evaluate(&world, self.released, count, session, servers)?;
                for (rows, server) in rows.iter_mut().zip(corrupted) {
                    rows.extend(self.rows(policy, &held, *server, count)?);
                }
                done += count;
                progress(ensemble * releases + done);
            }
        }
        let [first, second] = rows;
        let servers = corrupted.iter().zip(first.into_iter().zip(second));
        Ok(servers.flat_map(|(&server, (first, second))| self.views(server, &first, &second)).collect())
    }

    /// A row in which the unit votes for class 0 is the same in either ensemble, and so is one in which
    /// it votes for class 1; two rows after each other are one of each.
    fn views(&self, corrupted: PartyIndex, first: &[Row], second: &[Row]) -> [View; 2] {
        let every_other = |rows: &[Row], start: usize| {
            rows.iter().skip(start).step_by(2).map(|row| row.sample).collect::<Vec<_>>()
        };
        let voting = |class: usize| {
            let mut samples = every_other(first, class);
            samples.extend(every_other(second, 1 - class));
            samples
        };
        let compared = |rows: &[Row]| {
            let pairs = rows.chunks_exact(2);
            pairs
                .map(|pair| Sample { known: pair[0].query(), seen: self.both(pair[0], pair[1]) })
                .collect::<Vec<_>>()
        };
        let [row, pair] = self.names;
        let twice = NanoRho::new(self.rho.units().saturating_mul(2));
        [
            View { name: row, corrupted, rows: 1, rho: self.rho, samples: [voting(0), voting(1)] },
            View { name: pair, corrupted, rows: 2, rho: twice, samples: [compared(first), compared(second)] },
        ]
    }

    /// What two rows after each other show: of sums the difference, in which noise that was used twice
    /// cancels; of labels and bits both.
    fn both(&self, first: Row, second: Row) -> i64 {
        match self.released {
            Released::Counts | Released::Probabilities => first.compared - second.compared,
            _ => 8 * first.compared + second.compared,
        }
    }

    /// What `server` knows of each row of a batch.
    fn rows(
        &self,
        policy: &TaskPolicy,
        held: &[Held; 3],
        server: PartyIndex,
        rows: usize,
    ) -> Result<Vec<Row>, AuditError> {
        let classes = self.votes.classes;
        let own = &held[server.number()];
        // What the own noise of a row brings class 0 before class 1.
        let lead = |row: usize| own.noise[row * classes] - own.noise[row * classes + 1];
        let with_label = |row: usize, known: i64, seen: usize| {
            let (known, seen) = (if is_close(row) { known + CLOSE } else { known }, seen as i64);
            Row { sample: Sample { known, seen }, compared: seen }
        };
        let failed = |error: concilium_mpc::opening::OpeningError| AuditError::Evaluation(error.to_string());
        let parts = || {
            let [first, second, third] = held;
            let part = |held: &Held| {
                held.components.clone().ok_or_else(|| AuditError::Evaluation("nothing was released".into()))
            };
            Ok::<[ReleasedComponents; 3], AuditError>([part(first)?, part(second)?, part(third)?])
        };
        Ok(match self.released {
            Released::Counts | Released::Probabilities => {
                let sums = open_sums(&parts()?, rows * classes).map_err(failed)?;
                let less_own =
                    |row: usize, class: usize| sums[row * classes + class] - own.noise[row * classes + class];
                (0..rows).map(|row| self.sums(policy, [less_own(row, 0), less_own(row, 1)])).collect()
            }
            Released::Labels => {
                let labels = open_labels(&parts()?, rows, classes).map_err(failed)?;
                labels
                    .iter()
                    .enumerate()
                    .map(|(row, &label)| with_label(row, lead(row), label.min(2)))
                    .collect()
            }
            Released::Test(_) => {
                let bits = own.consensus.iter().zip(&own.threshold_noise).enumerate();
                bits.map(|(row, (&bit, &noise))| with_label(row, noise, usize::from(bit))).collect()
            }
            Released::ConfidentLabels(_) => {
                let labels = open_confident_labels(&parts()?, rows, classes).map_err(failed)?;
                let seen = |label: Option<usize>| label.map_or(0, |label| 1 + label.min(2));
                let labels = labels.into_iter().enumerate();
                labels.map(|(row, label)| with_label(row, lead(row), seen(label))).collect()
            }
        })
    }

    /// The counts of classes 0 and 1 with the noise of the other servers.
    ///
    /// The likelihood ratio of Gaussian noise is a function of their difference. That of Laplace noise
    /// rests on how much closer they are to the counts of one ensemble than to those of the other.
    fn sums(&self, policy: &TaskPolicy, [zero, one]: [i64; 2]) -> Row {
        let [others_zero, others_one] = self.votes.others.map(i64::from);
        let unit = i64::from(self.votes.unit);
        let compared = zero - one;
        let seen = match policy.mechanism {
            Mechanism::DiscreteLaplace { .. } => {
                let closer = |count: i64, base: i64| (count - base).abs() - (count - base - unit).abs();
                closer(zero, others_zero) - closer(one, others_one)
            }
            _ => compared,
        };
        Row { sample: Sample { known: 0, seen }, compared }
    }
}

/// Comparisons of one vote.
fn comparisons(classes: usize) -> usize {
    (classes * classes.saturating_sub(1) / 2).max(1)
}

/// Sigma or scale in votes.
fn width(mechanism: Mechanism) -> f64 {
    match mechanism {
        Mechanism::DiscreteLaplace { scale } => convert::votes(scale),
        Mechanism::DiscreteGaussian { sigma } => convert::votes(sigma),
        _ => convert::guaranteed_standard_deviation(mechanism),
    }
}

/// Votes of other models that make the unit's votes show in a label. Class 1 leads by what noise overcomes
/// now and then, as the tails tell the ensembles apart best, and in close rows by nothing; further classes
/// stay behind both as far as there are models for it.
fn label_votes(policy: &TaskPolicy) -> Votes {
    let width = width(policy.mechanism);
    let unit = policy.votes_of_one_unit();
    let models = (COMPARISONS / comparisons(policy.bins)) as u32;
    let half_lead = (width.round() as u32).min(3);
    let apart = if policy.bins > 2 { (1.5 * width).ceil() as u32 } else { 0 };
    let both = apart.min(models.saturating_sub(unit + 2 * half_lead) / 2);
    Votes { classes: policy.bins, unit, others: [both, both + half_lead], switching: half_lead }
}
