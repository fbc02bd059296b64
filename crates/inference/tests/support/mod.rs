//! What the tests of evaluation share: small random numbers, and models as three servers hold them.

#![allow(unreachable_pub, reason = "every test program compiles its own copy")]
#![allow(dead_code, reason = "each test program uses a part of this module")]

use std::sync::Arc;

use concilium_inference::{Ensemble, RingElement, SharedModel, flatten, logits_observed};
use concilium_mpc::Shares;
use concilium_mpc::local::{reconstruct, run, share};
use concilium_network::{FixedNetwork, InputDomain, Network, Precision, Ring, quantise};
use ndarray::{Array1, Array2, ArrayView2};

pub const FRACTIONAL_BITS: u32 = 12;

/// The precision of the tests in a ring: that of 32 bits has less room.
pub fn precision<E: RingElement>() -> Precision {
    let fractional_bits = match E::RING {
        Ring::Bits64 => FRACTIONAL_BITS,
        Ring::Bits32 => 9,
    };
    Precision { ring: E::RING, fractional_bits }
}

/// SplitMix64, to choose test networks.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn uniform(&mut self, magnitude: f64) -> f64 {
        (self.word() as f64 / u64::MAX as f64 * 2.0 - 1.0) * magnitude
    }
}

/// A perceptron of these sizes with random weights.
pub fn perceptron(random: &mut Random, sizes: &[usize]) -> Network {
    let mut layers = Vec::new();
    for pair in sizes.windows(2) {
        let weights = Array2::from_shape_simple_fn((pair[0], pair[1]), || random.uniform(0.8));
        let bias = Array1::from_shape_simple_fn(pair[1], || random.uniform(0.5));
        layers.push((weights, bias));
    }
    Network::perceptron(vec![sizes[0]], layers).expect("sizes fit each other")
}

/// Owners' networks and a shared input.
pub struct World<E: RingElement> {
    pub networks: Vec<FixedNetwork>,
    pub ensembles: [Ensemble<E>; 3],
    pub input: Array2<i64>,
    pub shares: [Shares<E>; 3],
}

/// A world of networks, which `network` draws one after the other, for random inputs between -1 and 1.
pub fn world_of<E: RingElement>(
    seed: u64,
    owners: usize,
    features: usize,
    rows: usize,
    mut network: impl FnMut(&mut Random, usize) -> Network,
) -> World<E> {
    let mut random = Random(seed);
    let domain = InputDomain::new(vec![features], vec![-1.0], vec![1.0]).expect("the domain is sound");
    let precision = precision::<E>();
    let fixed = |owner| {
        quantise(&network(&mut random, owner), &domain, precision).unwrap_or_else(|error| panic!("{error}"))
    };
    let networks: Vec<_> = (0..owners).map(fixed).collect();
    let ensembles = ensembles(seed, &networks);
    let drawn = Array2::from_shape_simple_fn((rows, features), || random.uniform(1.0));
    let input = domain.encode(drawn.view(), precision.fractional_bits).expect("inputs lie in the domain");
    let shares = share(seed ^ 0x1234, &input.mapv(E::from_signed));
    World { networks, ensembles, input, shares }
}

/// The three servers' ensembles of the given networks.
pub fn ensembles<E: RingElement>(seed: u64, networks: &[FixedNetwork]) -> [Ensemble<E>; 3] {
    let shared: Vec<[Arc<SharedModel<E>>; 3]> = networks
        .iter()
        .enumerate()
        .map(|(owner, network)| {
            let elements = Array1::from_vec(flatten(network)).insert_axis(ndarray::Axis(0));
            let parts = share(seed.wrapping_add(owner as u64), &elements);
            parts.map(|part| {
                let component = |view: ArrayView2<'_, E>| view.iter().copied().collect::<Vec<_>>();
                let (own, next) = (component(part.own()), component(part.next()));
                Arc::new(SharedModel::new(network.architecture(), &own, &next).expect("the share is sound"))
            })
        })
        .collect();
    [0, 1, 2].map(|server| {
        let models: Vec<_> = shared.iter().map(|parts| parts[server].clone()).collect();
        let architecture = models[0].architecture().clone();
        let bits = architecture.fractional_bits;
        Ensemble::new(models, architecture.input_features, architecture.classes, bits)
            .expect("all models fit the task")
    })
}

/// Runs the ensembles of `networks` on `shares` of one input, and opens every step's result, by owner and
/// step. The error names the owner by its place.
pub fn open_every_step<E: RingElement>(
    seed: u64,
    networks: &[FixedNetwork],
    ensembles: &[Ensemble<E>; 3],
    shares: &[Shares<E>; 3],
) -> Result<Vec<Vec<Array2<i64>>>, String> {
    let [first, second, third] = run(seed, |party| {
        let place = party.index().number();
        let mut seen = Vec::new();
        logits_observed(party, &ensembles[place], &shares[place], |step, owner, values| {
            seen.push((step, owner, Shares::new(values.own().to_owned(), values.next().to_owned())));
        })
        .expect("local links do not fail");
        seen
    });
    let mut opened: Vec<Vec<Option<Array2<i64>>>> =
        networks.iter().map(|network| vec![None; network.steps().len()]).collect();
    for ((a, b), c) in first.into_iter().zip(second).zip(third) {
        let (step, owner) = (a.0, a.1);
        let known_bits = networks[owner].precision().known_bits();
        let values = reconstruct(&[a.2, b.2, c.2]).mapv(|value| value.to_signed_modulo(known_bits));
        if opened[owner][step].replace(values).is_some() {
            return Err(format!("owner {owner}: step {step} is evaluated twice"));
        }
    }
    let all = |steps: Vec<Option<Array2<i64>>>| steps.into_iter().collect::<Option<Vec<_>>>();
    let opened = opened.into_iter().map(all).collect::<Option<Vec<_>>>();
    opened.ok_or_else(|| "a step is not evaluated".to_owned())
}

/// The values that step `index` takes, among the input and the results of the steps before.
pub fn taken<'a>(
    network: &FixedNetwork,
    index: usize,
    input: &'a Array2<i64>,
    results: &'a [Array2<i64>],
) -> Vec<ArrayView2<'a, i64>> {
    let value = |&value: &usize| if value == 0 { input.view() } else { results[value - 1].view() };
    network.steps()[index].inputs.iter().map(value).collect()
}

/// Runs the ensembles of `networks` on the shares of `input`, opens every step's result, and checks that
/// truncation allows it. The error names the owner by its place.
pub fn check_every_step<E: RingElement>(
    seed: u64,
    networks: &[FixedNetwork],
    ensembles: &[Ensemble<E>; 3],
    input: &Array2<i64>,
    shares: &[Shares<E>; 3],
) -> Result<(), String> {
    let opened = open_every_step(seed, networks, ensembles, shares)?;
    for (owner, (network, results)) in networks.iter().zip(&opened).enumerate() {
        for (index, result) in results.iter().enumerate() {
            network
                .check_step(index, &taken(network, index, input, results), result.view())
                .map_err(|error| format!("owner {owner}: {error}"))?;
        }
    }
    Ok(())
}
