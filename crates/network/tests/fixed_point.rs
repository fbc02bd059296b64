//! Properties of quantisation, range analysis and the fixed-point oracle on random networks.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use concilium_network::{
    Check, FixedNetwork, InputDomain, Network, Operation, QuantiseError, Ring, Rounding, StepError,
    choose_fractional_bits, quantise,
};
use ndarray::{Array1, Array2, Axis, array};
use proptest::{collection::vec, prelude::*};

/// Layers of the given sizes with weights from a list, magnified by `gain`.
fn layers(sizes: &[usize], weights: &[f64], gain: f64) -> Vec<(Array2<f64>, Array1<f64>)> {
    let mut weights = weights.iter().cycle().map(|weight| weight * gain);
    let mut layers = Vec::new();
    for pair in sizes.windows(2) {
        let mut take = |count: usize| weights.by_ref().take(count).collect::<Vec<f64>>();
        let matrix = Array2::from_shape_vec((pair[0], pair[1]), take(pair[0] * pair[1])).unwrap();
        layers.push((matrix, Array1::from_vec(take(pair[1]))));
    }
    layers
}

fn build(sizes: &[usize], weights: &[f64], gain: f64) -> Network {
    Network::perceptron(vec![sizes[0]], layers(sizes, weights, gain)).unwrap()
}

#[derive(Clone, Debug)]
struct Case {
    sizes: Vec<usize>,
    weights: Vec<f64>,
    /// Minimum, extent and binary magnitude of each feature.
    features: Vec<(f64, f64, i32)>,
    /// Positions of inputs within their ranges; 0 and 1 are the bounds.
    positions: Vec<f64>,
    /// Outcomes of truncations.
    outcomes: Vec<bool>,
}

fn cases() -> impl Strategy<Value = Case> {
    vec(2_usize..6, 2..5)
        .prop_flat_map(|sizes| {
            let features = vec((-1.0..1.0, 0.0..2.0, -12_i32..13), sizes[0]);
            let position = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0_f64];
            let positions = vec(position, 6 * sizes[0]);
            (Just(sizes), vec(-1.5..1.5_f64, 90), features, positions, vec(any::<bool>(), 61))
        })
        .prop_map(|(sizes, weights, features, positions, outcomes)| Case {
            sizes,
            weights,
            features,
            positions,
            outcomes,
        })
}

impl Case {
    fn domain(&self) -> InputDomain {
        let scale = |exponent: i32| 2_f64.powi(exponent);
        let low = self.features.iter().map(|&(low, _, exponent)| low * scale(exponent));
        let high = self.features.iter().map(|&(low, extent, exponent)| (low + extent) * scale(exponent));
        InputDomain::new(vec![self.features.len()], low.collect(), high.collect()).unwrap()
    }

    /// The network, its first weights divided by the magnitude of their feature so that every column
    /// matters.
    fn network(&self) -> Network {
        let mut layers = layers(&self.sizes, &self.weights, 1.0);
        for (mut row, &(_, _, exponent)) in layers[0].0.outer_iter_mut().zip(&self.features) {
            row *= 2_f64.powi(-exponent);
        }
        Network::perceptron(vec![self.sizes[0]], layers).unwrap()
    }

    fn inputs(&self, domain: &InputDomain) -> Array2<f64> {
        let features = domain.features();
        Array2::from_shape_fn((self.positions.len() / features, features), |(row, feature)| {
            let (low, high) = (domain.minimum()[feature], domain.maximum()[feature]);
            (low + self.positions[row * features + feature] * (high - low)).clamp(low, high)
        })
    }
}

/// Evaluates with an outcome for every truncation from a list, as the servers' randomness would.
fn evaluate_mixed(fixed: &FixedNetwork, inputs: &Array2<i64>, outcomes: &[bool]) -> Vec<Array2<i64>> {
    let mut outcomes = outcomes.iter().cycle();
    let mut steps: Vec<Array2<i64>> = Vec::new();
    for step in fixed.steps() {
        let values = steps.last().unwrap_or(inputs);
        let next = match (&step.operation, &step.weights) {
            (Operation::Dense { .. }, Some(weights)) => {
                let exact = values.dot(&weights.matrices.index_axis(Axis(0), 0)) + &weights.bias;
                let bound_bits = step.bound_bits.unwrap();
                assert!(exact.iter().all(|z| z.unsigned_abs() < 1 << bound_bits), "a sum beyond its bound");
                exact.mapv(|z| (z >> fixed.fractional_bits()) + i64::from(*outcomes.next().unwrap()))
            }
            _ => {
                let width = step.window.unwrap();
                assert!(
                    values.iter().all(|x| x.unsigned_abs() < 1 << (width - 1)),
                    "a value beyond its window"
                );
                values.mapv(|x| x.max(0))
            }
        };
        steps.push(next);
    }
    steps
}

#[test]
fn values_stay_within_ranges_windows_and_error_bounds() {
    common::runner(400)
        .run(&cases(), |case| {
            let (network, domain) = (case.network(), case.domain());
            let bits = choose_fractional_bits(Ring::Bits64, [&network], &domain).unwrap();
            let fixed = quantise(&network, &domain, bits).unwrap();
            prop_assert_eq!(fixed.architecture().validate(), Ok(()));
            let inputs = case.inputs(&domain);
            let encoded = domain.encode(inputs.view(), bits).unwrap();
            let unit = 2_f64.powi(-(bits as i32));
            let exact = network.evaluate(inputs.view());

            let mixed = evaluate_mixed(&fixed, &encoded, &case.outcomes);
            let mut arriving = encoded.view();
            for ((step, result), range) in mixed.iter().enumerate().zip(fixed.ranges()) {
                prop_assert_eq!(fixed.check_step(step, &[arriving], result.view()), Ok(()));
                for &value in result {
                    let value = value as f64 * unit;
                    prop_assert!((range.minimum..=range.maximum).contains(&value));
                }
                arriving = result.view();
            }
            let logits = mixed.last().unwrap();
            for row in logits.outer_iter() {
                for first in row {
                    for second in row {
                        prop_assert!((first - second).abs() < 1 << (fixed.final_width() - 1));
                    }
                }
            }
            for logits in [logits.clone(), fixed.evaluate(encoded.view(), Rounding::Nearest)] {
                for ((row, class), &logit) in logits.indexed_iter() {
                    let error = (logit as f64 * unit - exact[(row, class)]).abs();
                    prop_assert!(error <= fixed.error_bounds()[class], "{} > bound", error);
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn ranges_of_one_layer_are_attained() {
    // With one layer interval arithmetic is exact, so a corner of the domain reaches each end.
    common::runner(200)
        .run(&cases(), |mut case| {
            case.sizes.truncate(2);
            let (network, domain) = (case.network(), case.domain());
            let fixed = quantise(&network, &domain, 16).unwrap();
            let weights = &fixed.steps()[0].weights.as_ref().unwrap().matrices;
            let corner = |class: usize, most: bool| -> Vec<f64> {
                (0..domain.features())
                    .map(|feature| {
                        let high = (weights[(0, feature, class)] >= 0) == most;
                        if high { domain.maximum()[feature] } else { domain.minimum()[feature] }
                    })
                    .collect()
            };
            let logit = |class: usize, most: bool, rounding| {
                let row = domain.encode_row(&corner(class, most), 16).unwrap();
                let row = Array1::from_vec(row).insert_axis(ndarray::Axis(0));
                fixed.evaluate(row.view(), rounding)[(0, class)]
            };
            let classes = 0..network.classes();
            let largest = classes.clone().map(|class| logit(class, true, Rounding::Up)).max().unwrap();
            let smallest = classes.map(|class| logit(class, false, Rounding::Down)).min().unwrap();
            let range = &fixed.ranges()[0];
            prop_assert_eq!(range.maximum, largest as f64 / 65_536.0);
            prop_assert_eq!(range.minimum, smallest as f64 / 65_536.0);
            Ok(())
        })
        .unwrap();
}

#[test]
fn rounding_of_truncation() {
    for (value, down, nearest, up) in [
        (0, 0, 0, 1),
        (255, 0, 1, 1),
        (127, 0, 0, 1),
        (128, 0, 1, 1),
        (256, 1, 1, 2),
        (-1, -1, 0, 0),
        (-129, -1, -1, 0),
        (-256, -1, -1, 0),
    ] {
        assert_eq!(Rounding::Down.truncate(value, 8), down, "{value}");
        assert_eq!(Rounding::Nearest.truncate(value, 8), nearest, "{value}");
        assert_eq!(Rounding::Up.truncate(value, 8), up, "{value}");
    }
    assert_eq!(Rounding::Nearest.truncate(7, 0), 7);
}

#[test]
fn columns_of_any_magnitude_are_equally_exact() {
    // The same network and inputs, one with features of about 0.001 and 4000.
    const WEIGHTS: &[f64] = &[0.5, -0.25, 1.0, 0.75, -1.0, 0.125, 0.3];
    let plain = build(&[2, 3, 2], WEIGHTS, 1.0);
    let scales = array![2_f64.powi(-10), 4096.0];
    let mut scaled = layers(&[2, 3, 2], WEIGHTS, 1.0);
    scaled[0].0 /= &scales.view().insert_axis(Axis(1));
    let scaled = Network::perceptron(vec![2], scaled).unwrap();
    let inputs = array![[0.3, -0.9], [1.0, 0.123]];
    let plain_domain = InputDomain::new(vec![2], vec![-1.0], vec![1.0]).unwrap();
    let scaled_domain =
        InputDomain::new(vec![2], scales.mapv(|scale| -scale).to_vec(), scales.to_vec()).unwrap();
    let evaluate = |network: &Network, domain: &InputDomain, inputs: &Array2<f64>| {
        let encoded = domain.encode(inputs.view(), 12).unwrap();
        quantise(network, domain, 12).unwrap().evaluate(encoded.view(), Rounding::Nearest)
    };
    let first = evaluate(&plain, &plain_domain, &inputs);
    let second = evaluate(&scaled, &scaled_domain, &(&inputs * &scales));
    assert_eq!(first, second);
}

#[test]
fn too_little_headroom_is_refused_with_layer_bound_and_limit() {
    let domain = InputDomain::new(vec![2], vec![-1.0], vec![1.0]).unwrap();
    // At most 900 after the first layer and 2 · 900 · 300 + 300 < 2^20 after the second.
    let network = build(&[2, 2, 2], &[1.0], 300.0);
    let error = quantise(&network, &domain, 12).err().unwrap();
    assert!(
        matches!(error, QuantiseError::Headroom { step: 2, bound_bits: 44, headroom_bits: 19, .. }),
        "{error}"
    );
    let text = error.to_string();
    for part in ["step 2", "2^44", "2^39", "24 needed", "weight decay"] {
        assert!(text.contains(part), "{text}");
    }
    let bits = choose_fractional_bits(Ring::Bits64, [&network], &domain).unwrap();
    assert_eq!(bits, 9);
    assert!(quantise(&network, &domain, bits).is_ok());
    assert!(quantise(&network, &domain, bits + 1).is_err());
    // The most demanding network decides.
    let small = build(&[2, 2, 2], &[1.0], 0.5);
    assert!(choose_fractional_bits(Ring::Bits64, [&small], &domain).unwrap() > bits);
    assert_eq!(choose_fractional_bits(Ring::Bits64, [&small, &network], &domain), Ok(bits));

    let hopeless = build(&[2, 2, 2], &[1.0], 1e6);
    let error = choose_fractional_bits(Ring::Bits64, [&small, &hopeless], &domain).unwrap_err();
    assert!(matches!(error, QuantiseError::NoFractionalBits { network: 1, .. }), "{error}");
    let report = Check::new(&hopeless, &domain, Ring::Bits64, None).unwrap();
    assert!(!report.accepted());
    assert!(report.to_string().contains("refused: step 2"), "{report}");
    assert_eq!(report.error_bound, None);
}

#[test]
fn weights_that_no_integer_holds_are_refused() {
    let domain = InputDomain::new(vec![2], vec![-1.0], vec![1.0]).unwrap();
    let layer = |weight: f64, bias: f64| {
        let weights = array![[0.0, 0.0], [0.0, weight]];
        Network::perceptron(vec![2], vec![(weights, array![bias, 0.0])]).unwrap()
    };
    let error = quantise(&layer(f64::MAX, 0.0), &domain, 12).err().unwrap();
    assert!(matches!(error, QuantiseError::WeightTooLarge { step: 0, part: "weight", index: 3, .. }));
    let error = quantise(&layer(0.0, -1e300), &domain, 12).err().unwrap();
    assert!(matches!(error, QuantiseError::WeightTooLarge { part: "bias", index: 0, .. }));
    // Large but representable: the range analysis refuses it instead.
    let error = quantise(&layer(2_f64.powi(49), 0.0), &domain, 12).err().unwrap();
    assert!(matches!(error, QuantiseError::Headroom { step: 0, .. }), "{error}");
    for bits in [0, 7, 21, u32::MAX] {
        let error = quantise(&layer(1.0, 0.0), &domain, bits).err().unwrap();
        assert_eq!(error, QuantiseError::FractionalBits { fractional_bits: bits, ring: Ring::Bits64 });
    }
    let other = InputDomain::new(vec![3], vec![-1.0], vec![1.0]).unwrap();
    assert!(matches!(quantise(&layer(1.0, 0.0), &other, 12), Err(QuantiseError::InputShape { .. })));
    assert!(matches!(
        choose_fractional_bits(Ring::Bits64, [&layer(1.0, 0.0)], &other),
        Err(QuantiseError::InputShape { .. })
    ));
}

#[test]
fn wrong_steps_are_found() {
    let domain = InputDomain::new(vec![2], vec![0.0], vec![1.0]).unwrap();
    let network = build(&[2, 3, 2], &[0.5, -0.25, 1.0, 0.75, -1.0], 1.0);
    let fixed = quantise(&network, &domain, 10).unwrap();
    let inputs = domain.encode(array![[0.25, 1.0]].view(), 10).unwrap();
    let steps = fixed.trace(inputs.view(), Rounding::Down);
    assert_eq!(steps.len(), 3);
    assert_eq!(steps[2], fixed.evaluate(inputs.view(), Rounding::Down));
    for (change, allowed) in [(0, true), (1, true), (2, false), (-1, false)] {
        let mut changed = steps[0].clone();
        changed[(0, 2)] += change;
        let found = fixed.check_step(0, &[inputs.view()], changed.view());
        assert_eq!(found.is_ok(), allowed, "{change}");
        if let Err(error) = found {
            assert!(matches!(error, StepError::Value { step: 0, row: 0, output: 2, .. }), "{error}");
        }
    }
    let mut changed = steps[1].clone();
    changed[(0, 0)] += 1;
    assert!(fixed.check_step(1, &[steps[0].view()], changed.view()).is_err());
    assert!(matches!(
        fixed.check_step(3, &[inputs.view()], changed.view()),
        Err(StepError::NoStep { step: 3, steps: 3 })
    ));
    assert!(matches!(
        fixed.check_step(0, &[changed.view()], changed.view()),
        Err(StepError::Shape { part: "inputs", .. })
    ));
    assert!(matches!(
        fixed.check_step(0, &[inputs.view()], inputs.view()),
        Err(StepError::Shape { part: "outputs", .. })
    ));
    assert!(matches!(
        fixed.check_step(0, &[], changed.view()),
        Err(StepError::Shape { part: "inputs", found: [1, 0], expected: [1, 1], .. })
    ));
}

#[test]
fn architecture_holds_sizes_and_no_weights() {
    let domain = InputDomain::new(vec![2], vec![0.0], vec![1.0]).unwrap();
    let network = build(&[2, 3, 2], &[0.5, -0.25, 1.0], 1.0);
    let fixed = quantise(&network, &domain, 10).unwrap();
    let architecture = fixed.architecture();
    assert_eq!((architecture.input_features, architecture.classes), (2, 2));
    assert_eq!(architecture.parameter_count(), network.parameter_count());
    assert_eq!(architecture.final_width, fixed.final_width());
    let operations: Vec<_> = architecture.steps.iter().map(|step| step.operation.clone()).collect();
    let dense = |inputs, outputs| Operation::Dense { inputs, outputs };
    assert_eq!(operations, [dense(2, 3), Operation::Relu, dense(3, 2)]);
}

#[test]
fn encoded_values_stay_within_one() {
    let strategy = (-1e12_f64..1e12, 0.0_f64..1e11, 0.0_f64..=1.0, 0_u32..=20);
    common::runner(1000)
        .run(&strategy, |(low, extent, position, fractional_bits)| {
            let domain = InputDomain::new(vec![1], vec![low], vec![low + extent]).unwrap();
            let value = (low + position * extent).clamp(low, low + extent);
            let encoded = domain.encode_row(&[value], fractional_bits).unwrap()[0];
            prop_assert!(encoded.abs() <= 1 << fractional_bits);
            let unit = 2_f64.powi(domain.exponents()[0] - fractional_bits as i32);
            prop_assert!((encoded as f64 * unit - value).abs() <= unit / 2.0);
            Ok(())
        })
        .unwrap();
}
