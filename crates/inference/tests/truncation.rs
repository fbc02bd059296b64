//! Truncation has no bias: over all rescalings of a convolutional network, a number is rounded up as often
//! as the part that is cut off says.
//!
//! A number z at double scale becomes the floor of z / 2^f, or one more with probability frac(z / 2^f).
//! Given the inputs of a step, which are opened here, its roundings are independent with a known mean and
//! variance, so a sum over many is normal. The error odds of each test are those of a normal variable
//! beyond six deviations, 2e-9, times the number of groups that are looked at.

mod support;

use concilium_inference::RingElement;
use concilium_mpc::local::share;
use concilium_network::{
    Convolution, FixedNetwork, InputDomain, Network, Operation, Precision, Rounding, Step, Weights, quantise,
};
use concilium_ring::{Z32, Z64};
use ndarray::{Array1, Array2, Array3};
use support::{Random, ensembles, open_every_step, precision, taken};

/// Deviations from the expected number of roundings up that are taken for a bias.
const DEVIATIONS: f64 = 6.0;
/// Groups by the part that is cut off.
const GROUPS: usize = 8;
const SIDE: usize = 14;
const ROWS: usize = 12;

/// Two convolutions with ReLU, the sums of 2 by 2 windows after each, and a dense layer, as in LeNet.
fn network(random: &mut Random) -> Network {
    let windows = |channels, size, kernel, strides, groups| Convolution {
        channels,
        groups,
        size: [size; 2],
        kernel: [kernel; 2],
        strides: [strides; 2],
        dilations: [1; 2],
        pads: [0; 4],
    };
    let mut steps: Vec<Step> = Vec::new();
    let mut push = |operation: Operation| {
        let weights = operation.weights().map(|([groups, inner, outer], biases)| Weights {
            matrices: Array3::from_shape_simple_fn((groups, inner, outer), || random.uniform(0.4)),
            bias: Array1::from_shape_simple_fn(biases, || random.uniform(0.3)),
        });
        let input = steps.len();
        steps.push(Step { name: String::new(), inputs: vec![input], operation, weights });
    };
    push(Operation::Convolution(windows([1, 6], SIDE, 3, 1, 1)));
    push(Operation::Relu);
    push(Operation::Sum(windows([6, 6], 12, 2, 2, 6)));
    push(Operation::Convolution(windows([6, 8], 6, 3, 1, 1)));
    push(Operation::Relu);
    push(Operation::Sum(windows([8, 8], 4, 2, 2, 8)));
    push(Operation::Dense { inputs: 32, outputs: 10 });
    Network::new(vec![1, SIDE, SIDE], steps).expect("the steps fit together")
}

/// Roundings that have the same expectation, nearly.
#[derive(Clone, Copy, Default)]
struct Group {
    count: usize,
    /// Roundings up beyond those expected.
    excess: f64,
    variance: f64,
}

impl Group {
    fn add(&mut self, up: bool, expected: f64) {
        self.count += 1;
        self.excess += f64::from(u8::from(up)) - expected;
        self.variance += expected * (1.0 - expected);
    }

    fn deviations(&self) -> f64 {
        self.excess / self.variance.sqrt()
    }
}

/// By group, and of all together, how far the roundings of `results`, given for each step, are from what is
/// expected.
fn deviations(network: &FixedNetwork, input: &Array2<i64>, results: &[Array2<i64>]) -> Vec<f64> {
    let mut groups = [Group::default(); GROUPS];
    let mut all = Group::default();
    let unit = 1_i64 << network.fractional_bits();
    for (index, result) in results.iter().enumerate() {
        let Some(exact) = network.unrounded(index, &taken(network, index, input, results)) else { continue };
        for (&exact, &rounded) in exact.iter().zip(result) {
            let part = exact.rem_euclid(unit);
            let up = rounded - exact.div_euclid(unit);
            assert!((0..=1).contains(&up), "step {index}: {exact} became {rounded}");
            if part == 0 {
                assert_eq!(up, 0, "step {index}: what is not cut is not rounded");
                continue;
            }
            let expected = part as f64 / unit as f64;
            groups[part as usize * GROUPS / unit as usize].add(up == 1, expected);
            all.add(up == 1, expected);
        }
    }
    assert!(groups.iter().all(|group| group.count > 500), "too few of a kind to tell anything");
    groups.iter().chain([&all]).map(Group::deviations).collect()
}

fn worst(deviations: &[f64]) -> f64 {
    deviations.iter().fold(0.0, |worst, deviation| deviation.abs().max(worst))
}

/// A network and an input for it.
fn setting(precision: Precision) -> (u64, FixedNetwork, Array2<i64>) {
    let seed = std::env::var("CONCILIUM_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20);
    eprintln!("CONCILIUM_TEST_SEED={seed}");
    let mut random = Random(seed);
    let domain = InputDomain::new(vec![SIDE * SIDE], vec![-1.0], vec![1.0]).expect("the domain is sound");
    let network = quantise(&network(&mut random), &domain, precision).expect("headroom is left");
    let drawn = Array2::from_shape_simple_fn((ROWS, SIDE * SIDE), || random.uniform(1.0));
    let input = domain.encode(drawn.view(), precision.fractional_bits).expect("inputs lie in the domain");
    (seed, network, input)
}

fn roundings_have_no_bias<E: RingElement>() {
    let (seed, network, input) = setting(precision::<E>());
    let networks = [network];
    let ensembles = ensembles::<E>(seed, &networks);
    let shares = share(seed ^ 0x77, &input.mapv(E::from_signed));
    let opened = open_every_step(seed, &networks, &ensembles, &shares).expect("all parties answer");
    let found = deviations(&networks[0], &input, &opened[0]);
    eprintln!("deviations by the part that is cut off, and of all: {found:.2?}");
    assert!(worst(&found) < DEVIATIONS, "{found:?}");
}

#[test]
fn roundings_of_a_convolutional_network_have_no_bias() {
    roundings_have_no_bias::<Z64>();
}

#[test]
fn roundings_in_the_ring_of_32_bits_have_no_bias() {
    roundings_have_no_bias::<Z32>();
}

#[test]
fn rounding_down_or_to_the_nearest_would_be_found() {
    let (_, network, input) = setting(precision::<Z64>());
    let down = deviations(&network, &input, &network.trace(input.view(), Rounding::Down));
    assert!(down[GROUPS] < -10.0 * DEVIATIONS, "{down:?}");
    // To the nearest has hardly a bias over all numbers, but one for every part that is cut off.
    let nearest = deviations(&network, &input, &network.trace(input.view(), Rounding::Nearest));
    assert!(worst(&nearest[..GROUPS]) > 3.0 * DEVIATIONS, "{nearest:?}");
}
