//! Owners with different programs under MPC: convolutions, sums, joins, products and maxima, every step
//! against the fixed-point oracle, on three parties in one process.

mod support;

use concilium_inference::{RingElement, logits};
use concilium_mpc::local::{reconstruct, run};
use concilium_network::program::gather::{Axis, Gather, Piece};
use concilium_network::{
    Convolution, Function, InputDomain, MatrixProduct, Network, Operation, QuantiseError, Ring, Rounding,
    Step, Weights, quantise,
};
use concilium_ring::{Element, Z32, Z64};
use ndarray::{Array1, Array3};
use proptest::prelude::*;
use support::{FRACTIONAL_BITS, Random, World, check_every_step, precision, world_of};

const CHANNELS: usize = 2;
const SIDE: usize = 4;
const FEATURES: usize = CHANNELS * SIDE * SIDE;
const CLASSES: usize = 3;
/// Kinds of programs that the ring of 32 bits evaluates.
const IN_32_BITS: [usize; 4] = [0, 1, 6, 7];

fn image(channels: [usize; 2], groups: usize, pads: [usize; 4]) -> Convolution {
    Convolution {
        channels,
        groups,
        size: [SIDE, SIDE],
        kernel: [3, 2],
        strides: [1, 1],
        dilations: [1, 1],
        pads,
    }
}

fn affine(random: &mut Random, input: usize, operation: Operation) -> Step {
    let ([groups, inner, outer], biases) = operation.weights().expect("the operation has weights");
    let weights = Weights {
        matrices: Array3::from_shape_simple_fn((groups, inner, outer), || random.uniform(0.7)),
        bias: Array1::from_shape_simple_fn(biases, || random.uniform(0.5)),
    };
    Step { name: String::new(), inputs: vec![input], operation, weights: Some(weights) }
}

fn plain(inputs: &[usize], operation: Operation) -> Step {
    Step::plain("", inputs.to_vec(), operation)
}

/// Programs of several shapes and depths; `kind` chooses one.
fn program(random: &mut Random, kind: usize) -> Network {
    // Keeps height and width, so that values can be added to the input.
    let same = |groups| Operation::Convolution(image([CHANNELS; 2], groups, [1, 0, 1, 1]));
    let halves = |from: usize| Piece { value: 0, offset: from, axes: vec![Axis::Regular(FEATURES / 2, 2)] };
    let mut steps = match kind {
        // A residual block.
        0 => vec![
            affine(random, 0, same(1)),
            plain(&[1], Operation::Relu),
            affine(random, 2, same(1)),
            plain(&[3, 0], Operation::Combine { coefficients: vec![1, -2] }),
            plain(&[4], Operation::Relu),
        ],
        // Depthwise, then the larger of neighbours, compared before anything is rescaled.
        1 => vec![
            plain(&[0], Operation::Gather(Gather { pieces: vec![halves(0)] })),
            plain(&[0], Operation::Gather(Gather { pieces: vec![halves(1)] })),
            plain(&[1, 2], Operation::Maximum),
            plain(&[3, 3], Operation::Gather(Gather { pieces: vec![halves_of(0), halves_of(1)] })),
            affine(random, 4, same(CHANNELS)),
            plain(&[5], Operation::Relu),
        ],
        // A value clipped, and a gate.
        2 => vec![
            affine(random, 0, Operation::Shift { channels: CHANNELS, positions: SIDE * SIDE }),
            affine(random, 0, Operation::Shift { channels: FEATURES, positions: 1 }),
            plain(&[1], Operation::Relu),
            plain(&[2], Operation::Relu),
            plain(&[3, 4], Operation::Combine { coefficients: vec![1, -1] }),
            plain(&[5, 0], Operation::Multiply),
        ],
        // Functions: of the input before anything is rescaled, of a product, and of a function.
        3 => vec![
            plain(&[0], Operation::Function(Function::NegativeExponential)),
            affine(random, 1, same(1)),
            plain(&[2], Operation::Function(Function::Tanh)),
            plain(&[3], Operation::Function(Function::Gelu)),
            plain(&[4, 2], Operation::Multiply),
        ],
        // Answers, alone and added up.
        4 => vec![
            plain(&[0], Operation::Step),
            affine(random, 1, same(1)),
            plain(&[2], Operation::Step),
            plain(&[2], Operation::Relu),
            plain(&[3, 4], Operation::Multiply),
        ],
        // Matrices of one value times those of another.
        5 => {
            let shape = |groups, rows, inner, columns| {
                Operation::MatrixProduct(MatrixProduct { groups, rows, inner, columns })
            };
            vec![
                affine(random, 0, same(1)),
                plain(&[1], Operation::Function(Function::Tanh)),
                plain(&[2, 0], shape(CHANNELS, SIDE, SIDE, SIDE)),
                plain(&[3, 2], shape(1, 2, FEATURES / 2, 2)),
            ]
        }
        // Answers times what is compared again, so that no product takes a product.
        7 => vec![
            plain(&[0], Operation::Step),
            affine(random, 0, same(1)),
            plain(&[2, 0], Operation::Maximum),
            plain(&[1, 3], Operation::Multiply),
            plain(&[4], Operation::Relu),
        ],
        // Sums of windows, and no rectifier at all.
        _ => vec![plain(
            &[0],
            Operation::Sum(Convolution { strides: [2, 1], ..image([CHANNELS; 2], CHANNELS, [0; 4]) }),
        )],
    };
    let inputs = match kind {
        5 => 4,
        6 => CHANNELS * 3,
        _ => FEATURES,
    };
    let last = steps.len();
    steps.push(affine(random, last, Operation::Dense { inputs, outputs: CLASSES }));
    Network::new(vec![CHANNELS, SIDE, SIDE], steps).unwrap_or_else(|error| panic!("{error}"))
}

/// A channel's worth of numbers of value `value`.
fn halves_of(value: usize) -> Piece {
    Piece { value, offset: 0, axes: vec![Axis::Regular(FEATURES / 2, 1)] }
}

/// A world of programs of these kinds.
fn world<E: RingElement>(seed: u64, kinds: &[usize], rows: usize) -> World<E> {
    world_of(seed, kinds.len(), FEATURES, rows, |random, owner| program(random, kinds[owner]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_step_of_every_program_is_what_truncation_allows(
        seed: u64,
        kinds in prop::collection::vec(0usize..8, 1..6),
        rows in 1usize..4,
    ) {
        let world = world::<Z64>(seed, &kinds, rows);
        let World { networks, ensembles, input, shares } = &world;
        let checked = check_every_step(seed, networks, ensembles, input, shares);
        checked.map_err(|error| TestCaseError::fail(format!("kinds {kinds:?}, {error}")))?;
    }

    #[test]
    fn every_step_in_the_ring_of_32_bits_is_what_truncation_allows(
        seed: u64,
        kinds in prop::collection::vec(prop::sample::select(IN_32_BITS.to_vec()), 1..6),
        rows in 1usize..4,
    ) {
        let world = world::<Z32>(seed, &kinds, rows);
        let World { networks, ensembles, input, shares } = &world;
        let checked = check_every_step(seed, networks, ensembles, input, shares);
        checked.map_err(|error| TestCaseError::fail(format!("kinds {kinds:?}, {error}")))?;
    }
}

/// Rounds are those of the slowest program alone, whatever the others are and how many they are.
#[test]
fn different_programs_share_their_rounds() {
    let rounds = |kinds: &[usize], rows| {
        let world = world::<Z64>(17, kinds, rows);
        let [rounds, ..] = run(17, |party| {
            let place = party.index().number();
            logits(party, &world.ensembles[place], &world.shares[place]).expect("local links do not fail");
            party.traffic().rounds
        });
        rounds
    };
    let alone: Vec<u32> = (0..7).map(|kind| rounds(&[kind], 1)).collect();
    println!("rounds to the logits of each kind: {alone:?}");
    let together = rounds(&[6, 1, 0, 5, 2, 4, 3, 1, 2], 5);
    // Windows differ between programs, so that a level can take a round more than in each alone.
    let slowest = *alone.iter().max().expect("there are programs");
    assert!((slowest..=slowest + 4).contains(&together), "{together} rounds, {alone:?} alone");
    assert!(together < alone.iter().sum(), "{together} rounds, {alone:?} alone");
    assert_eq!(alone[6], 1, "sums and one product take one rescaling");
}

#[test]
fn logits_of_programs_stay_within_their_proven_bounds() {
    let kinds = [0, 1, 2, 3, 4, 5, 6];
    let world = world::<Z64>(23, &kinds, 4);
    let found = reconstruct(&run(23, |party| {
        let place = party.index().number();
        logits(party, &world.ensembles[place], &world.shares[place]).expect("local links do not fail")
    }));
    let unit = (-f64::from(FRACTIONAL_BITS)).exp2();
    for (owner, network) in world.networks.iter().enumerate() {
        let oracle = network.evaluate(world.input.view(), Rounding::Nearest);
        for ((row, class), plain) in oracle.indexed_iter() {
            let secure = found[(owner * 4 + row, class)].to_signed();
            let difference = (secure - plain).abs() as f64 * unit;
            assert!(difference <= 2.0 * network.error_bound(), "owner {owner}: off by {difference}");
        }
    }
}

/// What the ring of 32 bits cannot evaluate is refused by step, operation and remedy.
#[test]
fn programs_that_need_the_ring_of_64_bits_are_refused() {
    let domain = InputDomain::new(vec![FEATURES], vec![-1.0], vec![1.0]).expect("the domain is sound");
    for kind in 0..8 {
        let network = program(&mut Random(3), kind);
        let fixed = quantise(&network, &domain, precision::<Z32>());
        assert_eq!(fixed.is_ok(), IN_32_BITS.contains(&kind), "kind {kind}");
        let Err(error) = fixed else { continue };
        assert!(matches!(error, QuantiseError::NeedsWideRing { .. }), "kind {kind}: {error}");
        let told = error.to_string();
        for part in ["step ", "the task's ring has 32 bits", "a task with a ring of 64 bits"] {
            assert!(told.contains(part), "kind {kind}: {told}");
        }
        let expected = ["", "", "dense", "exponential", "dense", "tanh"][kind];
        assert!(told.contains(&format!("it is {expected}")), "kind {kind}: {told}");
        assert!(quantise(&network, &domain, precision::<Z64>()).is_ok());
    }
    assert_eq!(precision::<Z32>().ring, Ring::Bits32);
}
