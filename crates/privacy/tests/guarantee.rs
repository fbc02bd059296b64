//! Exact enumeration: what one corrupted server does not know, the sum of the two others' shares, never
//! loses more than is charged. No chance is involved.

mod support;

use concilium_privacy::{Delta, Mechanism, NanoRho, Sensitivity, convert};
use support::statistics::Pmf;

const ORDERS: [f64; 8] = [1.01, 1.5, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0];

/// What a count of noise `noise` gives away when it moves by `votes`: each probability with its loss.
fn losses(noise: &Pmf, votes: i64) -> Vec<(f64, f64)> {
    (-200..=200)
        .map(|x| (noise.probability(x), noise.probability(x - votes)))
        .filter(|(p, q)| *p > 1e-290 && *q > 1e-290)
        .map(|(p, q)| (p, (p / q).ln()))
        .collect()
}

/// Whether `rho` bounds the Renyi divergence of every order for two counts that move.
fn renyi_holds(losses: &[(f64, f64)], rho: f64) -> bool {
    ORDERS.iter().all(|order| {
        let sum: f64 = losses.iter().map(|(p, loss)| p * ((order - 1.0) * loss).exp()).sum();
        2.0 * sum.ln() / (order - 1.0) <= rho * order * (1.0 + 1e-9)
    })
}

/// `E[max(0, 1 - exp(epsilon - loss))]` for two counts that move, the smallest delta at `epsilon`.
fn hockey_stick(losses: &[(f64, f64)], epsilon: f64) -> f64 {
    let pairs = losses.iter().flat_map(|first| losses.iter().map(move |second| (first, second)));
    pairs.map(|((p, a), (q, b))| p * q * (-(epsilon - a - b).exp_m1()).max(0.0)).sum()
}

fn hockey_stick_holds(losses: &[(f64, f64)], rho: NanoRho) -> bool {
    ["1e-3", "1e-5", "1e-7"].into_iter().all(|text| {
        let delta: Delta = text.parse().expect("a number");
        let epsilon = convert::epsilon(rho, delta).expect("a sound delta");
        hockey_stick(losses, epsilon) <= convert::delta_value(delta)
    })
}

fn holds(noise: &Pmf, votes: i64, rho: NanoRho) -> bool {
    let losses = losses(noise, votes);
    let (renyi, hockey_stick) = (renyi_holds(&losses, convert::rho(rho)), hockey_stick_holds(&losses, rho));
    eprintln!("rho {rho}, {votes} votes: Renyi {renyi}, hockey stick {hockey_stick}");
    renyi && hockey_stick
}

fn price(mechanism: Mechanism, votes: i64) -> NanoRho {
    let votes = u32::try_from(votes).expect("few votes");
    mechanism.cost(Sensitivity::of_votes(votes), 2).expect("allowed")
}

#[test]
fn two_gaussian_shares_are_worth_their_price() {
    for (sigma, votes) in [("2", 1), ("3", 1), ("5", 1), ("5", 3), ("8", 5)] {
        let width: f64 = sigma.parse().expect("a number");
        let mechanism = Mechanism::DiscreteGaussian { sigma: sigma.parse().expect("a number") };
        let share = Pmf::discrete_gaussian(width / 2.0_f64.sqrt());
        let two = share.plus(&share);
        assert!(holds(&two, votes, price(mechanism, votes)), "sigma {sigma}, {votes} votes");
        // What must not hold: a share is missing, sigma is halved, the square of the L2 norm is taken as
        // one instead of two, the unit has more votes than are paid for.
        assert!(!holds(&share, votes, price(mechanism, votes)), "one share, sigma {sigma}");
        let half = Pmf::discrete_gaussian(width / 8.0_f64.sqrt());
        assert!(!holds(&half.plus(&half), votes, price(mechanism, votes)), "half of sigma {sigma}");
        let half_price = NanoRho::new(price(mechanism, votes).units() / 2);
        assert!(!holds(&two, votes, half_price), "L2 taken as one, sigma {sigma}");
        assert!(!holds(&two, votes + 1, price(mechanism, votes)), "one vote more, sigma {sigma}");
    }
}

#[test]
fn two_laplace_shares_are_worth_their_price() {
    for (scale, votes) in [("2", 1), ("3.5", 1), ("4", 3)] {
        let width: f64 = scale.parse().expect("a number");
        let mechanism = Mechanism::DiscreteLaplace { scale: scale.parse().expect("a number") };
        let share = Pmf::negative_binomial_difference(0.5, width);
        let two = share.plus(&share);
        assert!(holds(&two, votes, price(mechanism, votes)), "scale {scale}, {votes} votes");
        assert!(!holds(&share, votes, price(mechanism, votes)), "one share, scale {scale}");
        let half = Pmf::negative_binomial_difference(0.5, width / 2.0);
        assert!(!holds(&half.plus(&half), votes, price(mechanism, votes)), "half of scale {scale}");
        assert!(!holds(&two, 2 * votes, price(mechanism, votes)), "twice the votes, scale {scale}");
    }
}

/// The threshold test of a confident label: one count moves, and half of a row's price is enough.
#[test]
fn the_largest_count_costs_half() {
    for (sigma, votes) in [("2", 1), ("5", 3)] {
        let mechanism = Mechanism::DiscreteGaussian { sigma: sigma.parse().expect("a number") };
        let share = Pmf::discrete_gaussian(sigma.parse::<f64>().expect("a number") / 2.0_f64.sqrt());
        let losses = losses(&share.plus(&share), i64::from(votes));
        let rho = convert::rho(mechanism.cost(Sensitivity::of_largest_count(votes), 1).expect("allowed"));
        let divergence = |order: f64| {
            let sum: f64 = losses.iter().map(|(p, loss)| p * ((order - 1.0) * loss).exp()).sum();
            sum.ln() / (order - 1.0)
        };
        assert!(ORDERS.iter().all(|&order| divergence(order) <= rho * order * (1.0 + 1e-9)));
        assert!(!ORDERS.iter().all(|&order| divergence(order) <= 0.99 * rho * order));
    }
}
