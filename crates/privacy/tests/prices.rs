//! What is charged, against what opendp says that the same noise costs, for policies drawn at random.
//! `CONCILIUM_TEST_SEED` does not apply: proptest prints the policy that fails, shrunk.

use concilium_privacy::{
    Charge, ContentDigest, MAX_MODELS_PER_OWNER, Mechanism, NanoRho, NoiseScale, PrivacyUnit, Release,
    RequestId, RequestKey, Sensitivity, TaskPolicy, Threshold, convert,
};
use dashu::rational::RBig;
use opendp::{
    core::Measurement,
    domains::{AtomDomain, VectorDomain},
    measurements::{make_gaussian, make_laplace},
    measures::{MaxDivergence, ZeroConcentratedDivergence},
    metrics::{L1Distance, L2Distance},
};
use proptest::prelude::*;

type Rows = VectorDomain<AtomDomain<i64>>;

/// One unit of the charge, in rho.
const NANO: f64 = 1e-9;

/// A double that is not below `numerator / denominator`, and is the next one at most.
fn not_below(numerator: u64, denominator: u64) -> f64 {
    let exact = RBig::from_parts(numerator.into(), denominator.into());
    let near = numerator as f64 / denominator as f64;
    if rational(near) < exact { near.next_up() } else { near }
}

/// A double that is not above `sqrt(square)`.
fn root_not_above(square: u64) -> f64 {
    let near = (square as f64).sqrt();
    if rational(near) * rational(near) > RBig::from(square) { near.next_down() } else { near }
}

fn rational(number: f64) -> RBig {
    RBig::try_from(number).expect("finite")
}

fn exact(loss: NanoRho) -> RBig {
    RBig::from_parts(loss.units().into(), 1_000_000_000_u64.into())
}

/// The loss of Gaussian noise at a distance whose square is `squared` votes, by opendp. With
/// `fraction_bits` both are in units of 2^-fraction_bits votes.
fn gaussian_loss(sigma: NoiseScale, squared: u64, bins: usize, fraction_bits: i32) -> f64 {
    // Noise is rounded up and distance down, so that what opendp says is above the exact loss by no more
    // than its own last rounding.
    let unit = 2.0_f64.powi(fraction_bits);
    let width = not_below(sigma.millionths(), NoiseScale::UNITS_PER_ONE) * unit;
    let domain = VectorDomain::new(AtomDomain::<i64>::default()).with_size(bins);
    let measurement: Measurement<Rows, L2Distance<f64>, ZeroConcentratedDivergence, Vec<i64>> =
        make_gaussian(domain, L2Distance::default(), width, None).expect("a measurement");
    measurement.map(&(root_not_above(squared) * unit)).expect("a loss")
}

/// The pure epsilon of Laplace noise at a distance of `votes`, by opendp.
fn laplace_epsilon(scale: NoiseScale, votes: i64) -> f64 {
    let width = not_below(scale.millionths(), NoiseScale::UNITS_PER_ONE);
    let domain = VectorDomain::new(AtomDomain::<i64>::default()).with_size(1);
    let measurement: Measurement<Rows, L1Distance<i64>, MaxDivergence, Vec<i64>> =
        make_laplace(domain, L1Distance::default(), width, None).expect("a measurement");
    measurement.map(&votes).expect("a loss")
}

/// What opendp says that the noise costs, less its last rounding, and how far above that the charge may
/// be: one unit, the term for the sum of two Gaussian shares, and the rounding of doubles.
fn bounds(mechanism: Mechanism, moved: Sensitivity, bins: usize, fraction_bits: i32) -> (RBig, f64) {
    match mechanism {
        Mechanism::DiscreteGaussian { sigma } => {
            let theirs = gaussian_loss(sigma, moved.l2_squared(), bins, fraction_bits);
            let width = convert::votes(sigma);
            let tau = 10.0 * (-std::f64::consts::PI.powi(2) * width * width / 2.0).exp();
            let slack = NANO + 1.000_001 * tau * bins as f64 / 4.0 + 8.0 * f64::EPSILON * theirs;
            // A price is never below one unit of the term's own arithmetic, 1e-18 for each four bins.
            (rational(theirs.next_down()), slack + 1e-17 * bins as f64)
        }
        Mechanism::DiscreteLaplace { scale } => {
            // Bins that move cost half the square of their own epsilon each.
            let epsilon = laplace_epsilon(scale, moved.per_bin.into());
            let below = rational(epsilon.next_down());
            let theirs = below.clone() * below * RBig::from(moved.changed_bins) / RBig::from(2);
            let loss = f64::from(moved.changed_bins) * epsilon * epsilon / 2.0;
            (theirs, NANO + 8.0 * f64::EPSILON * loss)
        }
        other => panic!("{other:?} is new here"),
    }
}

/// Whether the charge is neither too little nor too much.
fn is_fair(charged: NanoRho, (theirs, slack): &(RBig, f64)) -> bool {
    let charged = exact(charged);
    charged >= *theirs && charged <= theirs.clone() + rational(*slack)
}

/// The widest noise is 2^20.
const CEILING: f64 = 20.0;

/// Widths from the floor to 2^`largest`, as many small as large ones.
fn width(largest: f64) -> impl Strategy<Value = NoiseScale> {
    (1.0..largest).prop_map(|exponent| NoiseScale::from_millionths((exponent.exp2() * 1e6).ceil() as u64))
}

fn mechanism(largest: f64) -> impl Strategy<Value = Mechanism> {
    prop_oneof![
        width(largest).prop_map(|sigma| Mechanism::DiscreteGaussian { sigma }),
        width(largest).prop_map(|scale| Mechanism::DiscreteLaplace { scale }),
    ]
}

fn policy() -> impl Strategy<Value = TaskPolicy> {
    let release = prop_oneof![
        Just(Release::Label),
        Just(Release::Histogram),
        Just(Release::ConfidentLabel),
        Just(Release::MeanProbability),
    ];
    let unit = prop_oneof![Just(PrivacyUnit::Record), Just(PrivacyUnit::Owner)];
    let models = prop_oneof![Just(1), 1..50_u32, 1..=MAX_MODELS_PER_OWNER];
    (release, unit, models, mechanism(CEILING), mechanism(CEILING), 1..=1_000_usize, 1..=100_u32).prop_map(
        |(release, unit, models_per_owner, mechanism, test, bins, votes)| {
            let mechanism = match (release, mechanism) {
                // The only one that this release allows.
                (Release::MeanProbability, Mechanism::DiscreteLaplace { scale }) => {
                    Mechanism::DiscreteGaussian { sigma: scale }
                }
                _ => mechanism,
            };
            let threshold =
                (release == Release::ConfidentLabel).then_some(Threshold { votes, mechanism: test });
            TaskPolicy {
                task: "digits".to_owned(),
                epoch: 1,
                declaration: None,
                release,
                mechanism,
                threshold,
                unit,
                models_per_owner,
                bins,
                cap_total: NanoRho::new(u64::MAX),
                cap_per_client: None,
                cap_per_client_all_tasks: None,
                window: None,
                delta: "1e-5".parse().expect("a number"),
            }
        },
    )
}

/// What a request of so many rows is charged.
fn charge(policy: &TaskPolicy, rows: u32) -> Charge {
    let key = RequestKey {
        task: policy.task.clone(),
        epoch: policy.epoch,
        client: "alice".to_owned(),
        request: RequestId([7; 16]),
    };
    Charge::new(key, ContentDigest([7; 32]), rows, policy, &[]).expect("a sound policy")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// A row of any policy is charged what opendp says, or up to one unit and the stated term more: for
    /// votes of one model or of an owner, on whole votes or on the lattice of probabilities, and for the
    /// test of a confident label.
    #[test]
    fn any_policy_is_charged_what_opendp_says(policy in policy(), rows in 1..=64_u32) {
        policy.validate().expect("a sound policy");
        let moved = policy.sensitivity();
        let prices = policy.row_prices().expect("a sound policy");
        let answer = bounds(policy.mechanism, moved, policy.bins, 0);
        prop_assert!(is_fair(prices.answer, &answer), "{} against {:?}", prices.answer, answer);
        // On its own lattice the noise costs the same, so the price in votes is the right one there.
        let lattice = bounds(policy.mechanism, moved, policy.bins, match policy.mechanism {
            Mechanism::DiscreteGaussian { .. } => policy.release.fraction_bits() as i32,
            _ => 0,
        });
        prop_assert!(is_fair(prices.answer, &lattice), "{} against {:?}", prices.answer, lattice);
        match policy.threshold {
            Some(threshold) => {
                let largest = Sensitivity::of_largest_count(policy.votes_of_one_unit());
                let test = bounds(threshold.mechanism, largest, 1, 0);
                prop_assert!(is_fair(prices.threshold, &test), "{} against {:?}", prices.threshold, test);
            }
            None => prop_assert_eq!(prices.threshold, NanoRho::ZERO),
        }
        // What the ledger is told is that, once for each row.
        let whole = u64::from(rows) * (prices.answer.units() + prices.threshold.units());
        prop_assert_eq!(charge(&policy, rows).cost().units(), whole);
    }

    /// Faults that prices could have are noticed, down to two units.
    #[test]
    fn wrong_prices_are_noticed(mechanism in mechanism(8.0), votes in 2..=100_u32, bins in 2..100_usize) {
        let moved = Sensitivity::of_votes(votes);
        let right = bounds(mechanism, moved, bins, 0);
        let price = |moved| mechanism.cost(moved, bins).expect("allowed");
        let charged = price(moved);
        prop_assert!(is_fair(charged, &right));
        prop_assert!(!is_fair(price(Sensitivity::of_votes(votes - 1)), &right), "a vote less");
        prop_assert!(!is_fair(price(Sensitivity::of_largest_count(votes)), &right), "one bin instead of two");
        prop_assert!(!is_fair(NanoRho::new(charged.units() * 2), &right), "a whole row's epsilon converted");
        prop_assert!(!is_fair(NanoRho::new(charged.units() + 2), &right), "two units too much");
        // Below, what two shares' sum costs is more than a unit.
        let width = match mechanism {
            Mechanism::DiscreteGaussian { sigma } => convert::votes(sigma),
            _ => f64::INFINITY,
        };
        if width >= 3.0 {
            prop_assert!(!is_fair(NanoRho::new(charged.units() - 2), &right), "two units too little");
        }
    }
}
