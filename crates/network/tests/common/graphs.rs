//! A graph's value through a fixed dense layer, against arithmetic, in real numbers and in fixed point.

use concilium_network::{
    Architecture, ImportError, InputDomain, Network, Ring, Rounding, choose_fractional_bits, import,
    onnx::{NodeProto, TensorProto},
    quantise,
};
use ndarray::{Array2, ArrayD, IxDyn};
use prost::Message;

use super::{floats, model, node};

/// Numbers from -1 to 1 that repeat after a long while.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut word = seed | 1;
    let mut next = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((word >> 40) as f32 / (1 << 23) as f32) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

pub(crate) fn network(
    shape: &[i64],
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
) -> Result<Network, ImportError> {
    import(&model(shape, nodes, constants).encode_to_vec())
}

/// Adds a dense layer from `features` numbers of `from` to three logits.
pub(crate) fn head(from: &str, features: usize) -> (Vec<NodeProto>, Vec<TensorProto>) {
    let nodes = vec![node("Flatten", &[from], "flat"), node("Gemm", &["flat", "head"], "y")];
    (nodes, vec![floats("head", &[features as i64, 3], &numbers(99, 3 * features))])
}

/// The value `from` of a graph, through a dense layer whose weights are known to be the identity where
/// there are few enough numbers, else random ones.
pub(crate) fn logits_of(values: &[f64], features: usize) -> Vec<f64> {
    let weights = numbers(99, 3 * features);
    (0..3).map(|class| (0..features).map(|i| values[i] * f64::from(weights[3 * i + class])).sum()).collect()
}

/// Evaluates `nodes`, which compute `a` from `x`, and compares with `expected`; then in fixed point.
#[track_caller]
pub(crate) fn check(
    shape: &[usize],
    mut nodes: Vec<NodeProto>,
    mut constants: Vec<TensorProto>,
    expected: impl Fn(&ArrayD<f64>) -> ArrayD<f64>,
) -> Network {
    let features: usize = shape.iter().product();
    let rows = Array2::from_shape_vec((3, features), numbers(7, 3 * features)).unwrap().mapv(f64::from);
    let results: Vec<ArrayD<f64>> = rows
        .outer_iter()
        .map(|row| expected(&ArrayD::from_shape_vec(IxDyn(shape), row.to_vec()).unwrap()))
        .collect();
    let (more, weights) = head("a", results[0].len());
    nodes.extend(more);
    constants.extend(weights);
    let dims: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    let network = network(&dims, nodes, constants).unwrap_or_else(|error| panic!("{error}"));
    let found = network.evaluate(rows.view());
    for (row, result) in results.iter().enumerate() {
        let values: Vec<f64> = result.iter().copied().collect();
        for (class, logit) in logits_of(&values, values.len()).into_iter().enumerate() {
            let difference = (found[(row, class)] - logit).abs();
            assert!(difference < 1e-5, "row {row}, class {class}: {} for {logit}", found[(row, class)]);
        }
    }
    check_fixed(&network, shape, &rows);
    network
}

/// Fixed point within its bounds, every step among the outcomes of truncation, and every number within
/// its range.
#[track_caller]
pub(crate) fn check_fixed(network: &Network, shape: &[usize], rows: &Array2<f64>) {
    let domain = InputDomain::new(shape.to_vec(), vec![-1.0], vec![1.0]).unwrap();
    let bits =
        choose_fractional_bits(Ring::Bits64, [network], &domain).unwrap_or_else(|error| panic!("{error}"));
    let fixed = quantise(network, &domain, bits).unwrap();
    let architecture = fixed.architecture();
    let written = serde_json::to_vec(&architecture).unwrap();
    assert_eq!(Architecture::from_json(&written).unwrap_or_else(|error| panic!("{error}")), architecture);
    let exact = network.evaluate(rows.view());
    let encoded = domain.encode(rows.view(), bits).unwrap();
    let unit = 2_f64.powi(-(bits as i32));
    for rounding in [Rounding::Down, Rounding::Nearest, Rounding::Up] {
        let steps = fixed.trace(encoded.view(), rounding);
        for ((index, result), range) in steps.iter().enumerate().zip(fixed.ranges()) {
            let value = |&value: &usize| if value == 0 { encoded.view() } else { steps[value - 1].view() };
            let inputs: Vec<_> = fixed.steps()[index].inputs.iter().map(value).collect();
            fixed.check_step(index, &inputs, result.view()).unwrap_or_else(|error| panic!("{error}"));
            for &number in result {
                let number = number as f64 * unit;
                assert!((range.minimum..=range.maximum).contains(&number), "{range:?}: {number}");
            }
        }
        for ((row, class), &logit) in steps.last().unwrap().indexed_iter() {
            let error = (logit as f64 * unit - exact[(row, class)]).abs();
            assert!(error <= fixed.error_bounds()[class], "{error} > {}", fixed.error_bounds()[class]);
        }
    }
}

pub(crate) fn operations(network: &Network) -> Vec<&'static str> {
    network.steps().iter().map(|step| step.operation.name()).collect()
}
