//! Releases that are as private as is charged pass; releases with a fault of their noise do not.
//!
//! The noise of the servers that pass is production noise, which cannot be seeded; an audit refutes a
//! sound release once in a million runs at most. The faults are made at the library's seam, the source of
//! each server's noise, and where that is possible from tables with a seed.
//!
//! Numbers of releases are such that the bounds of a fault lie two standard errors or more above the claim,
//! in the mean, for each corrupted server that can see it; they are printed. One that refutes is enough, and
//! what two servers know rests on different noise.

#[path = "../../privacy/tests/support/statistics.rs"]
#[allow(dead_code, unreachable_pub, reason = "another crate's tests use the other part")]
mod statistics;

use std::collections::BTreeMap;

use concilium_audit::{Finding, Report, ServerNoise, Settings, Verdict, audit};
use concilium_mpc::PartyIndex;
use concilium_privacy::{
    Mechanism, NoiseError, NoiseScale, NoiseShare, NoiseSource, OpenDpNoise, PrivacyUnit, Release,
    TaskPolicy, Threshold,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use statistics::Pmf;

/// No noise.
struct Silent;

impl NoiseSource for Silent {
    fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
        Ok(NoiseShare::new(vec![0; bins]))
    }
}

/// Every share is drawn once and used for two rows.
struct Twice(Box<dyn NoiseSource>, Option<Vec<i64>>);

impl NoiseSource for Twice {
    fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
        if let Some(values) = self.1.take() {
            return Ok(NoiseShare::new(values));
        }
        let share = self.0.draw(bins)?;
        self.1 = Some(share.values().to_vec());
        Ok(share)
    }
}

/// Draws from a table, because the production source refuses noise below the policy's floor.
struct Table {
    cumulative: Vec<f64>,
    first: i64,
    random: StdRng,
}

impl NoiseSource for Table {
    fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
        let mut value = || {
            let drawn = self.random.random::<f64>();
            let place = self.cumulative.partition_point(|&below| below < drawn);
            self.first + i64::try_from(place).expect("a short table")
        };
        Ok(NoiseShare::new((0..bins).map(|_| value()).collect()))
    }
}

fn seed() -> u64 {
    let seed =
        std::env::var("CONCILIUM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_121);
    eprintln!("CONCILIUM_TEST_SEED={seed}");
    seed
}

/// One server's share of noise that is `part` of what the mechanism says.
fn tabulated(mechanism: Mechanism, part: f64, random: &mut StdRng) -> Box<dyn NoiseSource> {
    let width = |scale: NoiseScale| part * scale.millionths() as f64 / 1e6;
    let pmf = match mechanism {
        Mechanism::DiscreteGaussian { sigma } => Pmf::discrete_gaussian(width(sigma) / 2.0_f64.sqrt()),
        Mechanism::DiscreteLaplace { scale } => Pmf::negative_binomial_difference(0.5, width(scale)),
        _ => unreachable!("there are two mechanisms"),
    };
    let sums = pmf.probabilities.iter().scan(0.0, |sum, probability| {
        *sum += probability;
        Some(*sum)
    });
    Box::new(Table { cumulative: sums.collect(), first: pmf.first, random: StdRng::from_rng(random) })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Production noise.
    None,
    /// Server 1 adds no noise.
    ShareMissing,
    /// Every width is half of what it must be.
    Halved,
    /// The L2 sensitivity of a vote is taken as 1 instead of sqrt 2, so sigma is smaller by sqrt 2.
    SensitivityOne,
    /// Two rows get the same noise.
    UsedTwice,
    /// Nobody adds noise.
    NoNoise,
    /// As `Halved`, of the answers alone; the threshold test is sound.
    AnswersHalved,
}

fn servers(policy: &TaskPolicy, fault: Fault, random: &mut StdRng) -> [ServerNoise; 3] {
    let bits = policy.release.fraction_bits();
    let mut drawn = |part: f64, mechanism: Mechanism, bits: u32| match mechanism {
        // On the fine lattice every width is allowed, and a table would be long.
        Mechanism::DiscreteGaussian { sigma } if bits > 0 => {
            let sigma = NoiseScale::from_millionths((part * sigma.millionths() as f64).round() as u64);
            let source = OpenDpNoise::new(Mechanism::DiscreteGaussian { sigma }.on_lattice(bits));
            Box::new(source.expect("allowed on the lattice")) as Box<dyn NoiseSource>
        }
        _ => tabulated(mechanism, part, random),
    };
    [0, 1, 2].map(|server| {
        if fault == Fault::None {
            return ServerNoise::of_server(policy).expect("a sound policy");
        }
        let (part, tested) = match fault {
            Fault::Halved => (0.5, 0.5),
            Fault::AnswersHalved => (0.5, 1.0),
            Fault::SensitivityOne => (0.5_f64.sqrt(), 0.5_f64.sqrt()),
            _ => (1.0, 1.0),
        };
        let mut faulty = |part: f64, mechanism: Mechanism, bits: u32| match fault {
            Fault::NoNoise => Box::new(Silent) as Box<dyn NoiseSource>,
            Fault::ShareMissing if server == 1 => Box::new(Silent),
            Fault::UsedTwice => Box::new(Twice(drawn(part, mechanism, bits), None)),
            _ => drawn(part, mechanism, bits),
        };
        let answers = faulty(part, policy.mechanism, bits);
        let threshold = policy.threshold.map(|threshold| faulty(tested, threshold.mechanism, 0));
        ServerNoise { answers, threshold }
    })
}

fn policy(release: Release, mechanism: Mechanism, bins: usize, models_per_owner: u32) -> TaskPolicy {
    let threshold = Threshold { votes: 40, mechanism: gaussian("2") };
    TaskPolicy {
        task: "digits".to_owned(),
        epoch: 1,
        declaration: None,
        release,
        mechanism,
        threshold: (release == Release::ConfidentLabel).then_some(threshold),
        unit: PrivacyUnit::Owner,
        models_per_owner,
        bins,
        cap_total: "100".parse().expect("a number"),
        cap_per_client: None,
        cap_per_client_all_tasks: None,
        window: None,
        delta: "1e-5".parse().expect("a number"),
    }
}

fn gaussian(sigma: &str) -> Mechanism {
    Mechanism::DiscreteGaussian { sigma: sigma.parse().expect("a number") }
}

fn laplace(scale: &str) -> Mechanism {
    Mechanism::DiscreteLaplace { scale: scale.parse().expect("a number") }
}

/// Audits with a fault, all three servers as corrupted ones.
fn audited(policy: &TaskPolicy, fault: Fault, releases: usize) -> Report {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let settings = Settings { releases, corrupted: PartyIndex::ALL.to_vec(), delta: None, seed };
    let begin = std::time::Instant::now();
    let report = audit(policy, &settings, servers(policy, fault, &mut random), &mut |_, _| {});
    let report = report.expect("the audit runs");
    eprintln!("{} {fault:?}, {releases} releases, {:?}", policy.release, begin.elapsed());
    for finding in &report.findings {
        eprintln!(
            "  server {} {}: {:?} of {:?}, bound {:.3}, claim {:.3}, exact {:?} at {}: {:?}, margin {:.1}",
            finding.corrupted_server,
            finding.view,
            finding.hits,
            finding.trials,
            finding.lower_bound,
            finding.claim,
            finding.exact,
            finding.delta,
            finding.verdict,
            margin(finding)
        );
    }
    report
}

/// How far the bound is above the claim, in standard errors of the bound.
fn margin(finding: &Finding) -> f64 {
    let [p, q] = [0, 1].map(|part| (finding.hits[part] as f64 + 1.0) / (finding.trials[part] as f64 + 2.0));
    let [n, m] = finding.trials.map(|trials| trials as f64);
    let error = p * (1.0 - p) / n / (p - finding.delta).powi(2) + (1.0 - q) / q / m;
    (finding.lower_bound - finding.claim) / error.sqrt()
}

/// The servers whose views refute, by what was looked at.
fn refuting(report: &Report) -> BTreeMap<&'static str, Vec<usize>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for finding in report.findings.iter().filter(|finding| finding.verdict == Verdict::Refuted) {
        found.entry(finding.view).or_default().push(finding.corrupted_server);
    }
    found
}

/// What should be caught, by whom, and with how many releases.
struct Control {
    fault: Fault,
    releases: usize,
    views: &'static [&'static str],
}

fn control(fault: Fault, releases: usize, views: &'static [&'static str]) -> Control {
    Control { fault, releases, views }
}

/// The policy passes with production noise, and one of the views named refutes each fault.
fn check(policy: &TaskPolicy, releases: usize, controls: &[Control]) {
    let report = audited(policy, Fault::None, releases);
    assert!(!report.is_refuted());
    let rows = report.findings.iter().filter(|finding| finding.rows == 1);
    assert!(rows.clone().count() >= 3);
    for finding in rows {
        assert_eq!(finding.verdict, Verdict::Holds, "{} of {}", finding.view, releases);
    }
    for Control { fault, releases, views } in controls {
        let refuting = refuting(&audited(policy, *fault, *releases));
        eprintln!("  refuted by {refuting:?}");
        assert!(views.iter().any(|view| refuting.contains_key(view)), "{fault:?} is overlooked");
        // The silent server is the only one that knows all there is of its own noise.
        if *fault == Fault::ShareMissing {
            assert!(refuting.values().all(|servers| !servers.contains(&1)), "{refuting:?}");
        }
    }
}

#[test]
fn noisy_counts_are_worth_their_price_and_faulty_ones_are_not() {
    let view = &["counts"];
    let controls = [
        control(Fault::ShareMissing, 120_000, view),
        control(Fault::SensitivityOne, 120_000, view),
        control(Fault::Halved, 12_000, view),
        control(Fault::UsedTwice, 8_000, &["two rows of counts"]),
        control(Fault::NoNoise, 4_000, view),
    ];
    check(&policy(Release::Histogram, gaussian("2"), 3, 1), 60_000, &controls);
}

/// The price of Laplace noise in rho leaves more room, so noise that is too weak by sqrt 2 is not refuted.
#[test]
fn noisy_counts_with_laplace_noise_are_worth_their_price_and_faulty_ones_are_not() {
    let view = &["counts"];
    let controls = [
        control(Fault::ShareMissing, 40_000, view),
        control(Fault::Halved, 30_000, view),
        control(Fault::UsedTwice, 20_000, &["two rows of counts"]),
        control(Fault::NoNoise, 4_000, view),
    ];
    check(&policy(Release::Histogram, laplace("2"), 2, 1), 40_000, &controls);
}

#[test]
fn labels_are_worth_their_price_and_faulty_ones_are_not() {
    let view = &["label"];
    let controls = [
        control(Fault::ShareMissing, 300_000, view),
        control(Fault::SensitivityOne, 300_000, view),
        control(Fault::Halved, 60_000, view),
        control(Fault::UsedTwice, 100_000, &["two labels"]),
        control(Fault::NoNoise, 20_000, view),
    ];
    check(&policy(Release::Label, gaussian("2"), 2, 2), 60_000, &controls);
}

/// A label shows less of Laplace noise than is paid for, so that it is refuted by great faults alone.
#[test]
fn labels_with_laplace_noise_are_worth_their_price_and_faulty_ones_are_not() {
    let controls =
        [control(Fault::UsedTwice, 100_000, &["two labels"]), control(Fault::NoNoise, 20_000, &["label"])];
    check(&policy(Release::Label, laplace("2"), 2, 1), 60_000, &controls);
}

#[test]
fn confident_labels_are_worth_their_price_and_faulty_ones_are_not() {
    let both = &["threshold test", "confident label"];
    let controls = [
        control(Fault::ShareMissing, 300_000, both),
        control(Fault::Halved, 60_000, both),
        control(Fault::AnswersHalved, 120_000, &["confident label"]),
        control(Fault::UsedTwice, 40_000, &["two threshold tests", "two confident labels"]),
        control(Fault::NoNoise, 20_000, &["threshold test"]),
    ];
    check(&policy(Release::ConfidentLabel, gaussian("2"), 2, 2), 60_000, &controls);
}

#[test]
fn mean_probabilities_are_worth_their_price_and_faulty_ones_are_not() {
    let view = &["probabilities"];
    let controls = [
        control(Fault::ShareMissing, 60_000, view),
        control(Fault::Halved, 12_000, view),
        control(Fault::UsedTwice, 8_000, &["two rows of probabilities"]),
        control(Fault::NoNoise, 4_000, view),
    ];
    check(&policy(Release::MeanProbability, gaussian("2"), 2, 1), 20_000, &controls);
}
