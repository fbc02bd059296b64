//! Every operator on models built by hand, against arithmetic written out here.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{WithAttributes, floats, integers, model, node, sequence, typed, value_info};
use concilium_network::{
    ImportError, ImportOptions, Network, import, import_with,
    onnx::{ModelProto, NodeProto, TensorProto, ValueInfoProto, data_type},
};
use ndarray::{Array2, array};
use prost::Message;

fn network(model: &ModelProto) -> Network {
    import(&model.encode_to_vec()).unwrap_or_else(|error| panic!("{error}"))
}

/// Imports a chain of nodes from `x` of `[batch, shape...]` to `y` and evaluates it.
#[track_caller]
fn check(
    shape: &[i64],
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    inputs: Array2<f64>,
    expected: Array2<f64>,
) {
    let network = network(&model(shape, nodes, constants));
    let found = network.evaluate(inputs.view());
    assert_eq!(found.dim(), expected.dim());
    let close = found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6);
    assert!(close, "found {found}, expected {expected}");
}

fn refusal(model: &ModelProto) -> ImportError {
    import(&model.encode_to_vec()).err().expect("the model must be refused")
}

/// Refused for `operator` alone.
#[track_caller]
fn check_unsupported(shape: &[i64], nodes: Vec<NodeProto>, constants: Vec<TensorProto>, operator: &str) {
    match refusal(&model(shape, nodes, constants)) {
        ImportError::Unsupported(refused) => {
            let operators: Vec<_> = refused.nodes.iter().map(|node| node.operator.as_str()).collect();
            assert_eq!(operators, [operator], "{refused}");
        }
        error => panic!("{error}"),
    }
}

fn two() -> Array2<f64> {
    array![[1.0, -2.0], [0.5, 4.0]]
}

#[test]
fn gemm_with_factors_and_transposed_weights() {
    // y = 2 x Wt + 0.5 c, W = [[1, 2], [3, 4]].
    let w = || floats("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let gemm = || node("Gemm", &["x", "w", "c"], "y").float("alpha", 2.0).float("beta", 0.5);
    let c = || floats("c", &[1, 2], &[2.0, -4.0]);
    check(
        &[2],
        vec![gemm().integer("transB", 1)],
        vec![w(), c()],
        two(),
        array![[-5.0, -12.0], [18.0, 33.0]],
    );
    check(&[2], vec![gemm()], vec![w(), c()], two(), array![[-9.0, -14.0], [26.0, 32.0]]);
    // Without bias, and with a scalar one.
    check(&[2], vec![node("Gemm", &["x", "w"], "y")], vec![w()], two(), array![[-5.0, -6.0], [12.5, 17.0]]);
    check(
        &[2],
        vec![node("Gemm", &["x", "w", "c"], "y")],
        vec![w(), floats("c", &[], &[1.0])],
        two(),
        array![[-4.0, -5.0], [13.5, 18.0]],
    );
    check_unsupported(&[2], vec![gemm().integer("transA", 1)], vec![w(), c()], "Gemm");
}

#[test]
fn matmul_and_elementwise_arithmetic_fuse_to_one_layer() {
    // ((3 - x) / [2, 4] * 10 - [1]) W + b
    let nodes = vec![
        node("Sub", &["three", "x"], "a"),
        node("Div", &["a", "divisor"], "b"),
        node("Mul", &["ten", "b"], "c"),
        node("Sub", &["c", "one"], "d"),
        node("MatMul", &["d", "w"], "e"),
        node("Add", &["bias", "e"], "f"),
        node("Neg", &["f"], "y"),
    ];
    let constants = vec![
        floats("three", &[], &[3.0]),
        floats("divisor", &[2], &[2.0, 4.0]),
        floats("ten", &[1, 1], &[10.0]),
        floats("one", &[1], &[1.0]),
        floats("w", &[2, 2], &[1.0, 0.0, 1.0, 2.0]),
        floats("bias", &[1, 2], &[0.5, -0.5]),
    ];
    // Row 1: [2, 5] -> [1, 1.25] -> [10, 12.5] -> [9, 11.5] -> [20.5, 23] -> [21, 22.5].
    // Row 2: [2.5, -1] -> [1.25, -0.25] -> [12.5, -2.5] -> [11.5, -3.5] -> [8, -7] -> [8.5, -7.5].
    let expected = array![[-21.0, -22.5], [-8.5, 7.5]];
    let imported = network(&model(&[2], nodes.clone(), constants.clone()));
    assert_eq!(imported.steps().len(), 1);
    let operators: Vec<_> = imported.origin().unwrap().operators.clone();
    assert!(operators.contains(&("Sub".to_owned(), 2)), "{operators:?}");
    check(&[2], nodes, constants, two(), expected);
}

#[test]
fn relu_separates_layers_and_is_idempotent() {
    let nodes = vec![
        node("Gemm", &["x", "w"], "a"),
        node("Relu", &["a"], "b"),
        node("Relu", &["b"], "c"),
        node("Gemm", &["c", "w"], "d"),
        node("Gemm", &["d", "w"], "y"),
    ];
    let w = floats("w", &[2, 2], &[1.0, 1.0, -1.0, 1.0]);
    let imported = network(&model(&[2], nodes.clone(), vec![w.clone()]));
    assert_eq!(imported.steps().len(), 3);
    // [1, -2] -> [3, -1] -> [3, 0] -> [3, 3] -> [0, 6]; [0.5, 4] -> [-3.5, 4.5] -> [0, 4.5] -> [-4.5, 4.5]
    // -> [-9, 0].
    check(&[2], nodes, vec![w], two(), array![[0.0, 6.0], [-9.0, 0.0]]);
    // Directly on the input, and as the last node.
    check(&[2], vec![node("Relu", &["x"], "y")], vec![], two(), array![[1.0, 0.0], [0.5, 4.0]]);
}

#[test]
fn batch_normalisation_is_folded() {
    let parameters = vec![
        floats("scale", &[2], &[2.0, 3.0]),
        floats("bias", &[2], &[1.0, -1.0]),
        floats("mean", &[2], &[0.5, 1.0]),
        floats("variance", &[2], &[3.0, 0.0]),
    ];
    let normalise = |input: &str, output: &str| {
        node("BatchNormalization", &[input, "scale", "bias", "mean", "variance"], output)
    };
    // Deviation sqrt(3 + 1) = 2 and sqrt(0 + 1) = 1.
    let expected = array![[1.5, -10.0], [1.0, 8.0]];
    let nodes = vec![normalise("x", "y").float("epsilon", 1.0)];
    check(&[2], nodes, parameters.clone(), two(), expected);
    // By channel: [batch, 2, 2] has two positions a channel.
    let nodes = vec![normalise("x", "c").float("epsilon", 1.0), node("Flatten", &["c"], "y")];
    let inputs = array![[0.5, 1.5, 1.0, 2.0]];
    check(&[2, 2], nodes, parameters.clone(), inputs, array![[1.0, 2.0, -1.0, 2.0]]);

    let training = normalise("x", "y").integer("training_mode", 1);
    check_unsupported(&[2], vec![training], parameters.clone(), "BatchNormalization");
    let nodes = vec![normalise("x", "y").float("epsilon", 0.0)];
    let error = refusal(&model(&[2], nodes, parameters)).to_string();
    assert!(error.contains("variance 1 is not positive"), "{error}");
}

#[test]
fn nodes_that_change_nothing() {
    let mut training = integers("training", &[0]);
    (training.data_type, training.dims) = (data_type::BOOL, vec![]);
    (training.int64_data, training.int32_data) = (vec![], vec![0]);
    let nodes = vec![
        node("Identity", &["x"], "a"),
        node("Cast", &["a"], "b").integer("to", 11),
        node("Dropout", &["b", "", "training"], "c"),
        node("Cast", &["c"], "d").integer("to", 10),
        node("Unsqueeze", &["d", "axes"], "e"),
        node("Squeeze", &["e", "axes"], "f"),
        node("Squeeze", &["f"], "y"),
    ];
    let constants = vec![training.clone(), integers("axes", &[-1])];
    check(&[2], nodes.clone(), constants.clone(), two(), two());
    // In operator set 11 axes are parameters.
    let mut old = model(
        &[2],
        vec![
            node("Dropout", &["x"], "a"),
            node("Unsqueeze", &["a"], "b").integers("axes", &[1, 3]),
            node("Squeeze", &["b"], "y").integers("axes", &[3, 1]),
        ],
        vec![],
    );
    old.opset_import[0].version = 11;
    assert_eq!(network(&old).evaluate(two().view()), two());

    let mut constants = constants;
    constants[0].int32_data = vec![1];
    check_unsupported(&[2], nodes, constants, "Dropout");
    let to_integer = vec![node("Cast", &["x"], "y").integer("to", 7)];
    check_unsupported(&[2], to_integer, vec![], "Cast");
}

#[test]
fn reshapes_keep_the_batch_first() {
    let six = array![[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]];
    let reshape =
        |target: &[i64]| (vec![node("Reshape", &["x", "shape"], "y")], vec![integers("shape", target)]);
    for target in [&[-1, 6][..], &[0, -1], &[0, 6], &[0, 0, 3], &[0, 3, -1], &[-1, 2, 3], &[0, 0, 0]] {
        let (nodes, constants) = reshape(target);
        check(&[2, 3], nodes, constants, six.clone(), six.clone());
    }
    // These would mix samples or fix the batch.
    for target in [&[1, -1][..], &[-1], &[6], &[2, -1]] {
        let (nodes, constants) = reshape(target);
        check_unsupported(&[2, 3], nodes, constants, "Reshape");
    }
    // Positions of all samples in one dimension are no scores.
    let (nodes, constants) = reshape(&[-1, 3]);
    let text = refusal(&model(&[2, 3], nodes, constants)).to_string();
    assert!(text.contains("holds 2 rows of scores for each sample"), "{text}");
    // These do not fit.
    for target in [&[0, 5][..], &[0, -1, 4], &[0, -1, -1], &[0, -7], &[0, 0, 0, 0], &[0, i64::MAX, 2]] {
        let (nodes, constants) = reshape(target);
        let error = refusal(&model(&[2, 3], nodes, constants));
        assert!(matches!(error, ImportError::Shape { .. }), "{target:?}: {error}");
    }
    // A batch that the model fixes may be named.
    let (nodes, constants) = reshape(&[1, -1]);
    let mut fixed = model(&[2, 3], nodes, constants);
    fixed.graph.as_mut().unwrap().input[0] = value_info("x", &[Some(1), Some(2), Some(3)]);
    assert_eq!(network(&fixed).evaluate(six.view()), six);

    check(&[2, 3], vec![node("Flatten", &["x"], "y")], vec![], six.clone(), six.clone());
    let flatten = vec![node("Flatten", &["x"], "y").integer("axis", -2)];
    check(&[2, 3], flatten, vec![], six.clone(), six.clone());
    let flatten = vec![node("Flatten", &["x"], "y").integer("axis", 0)];
    check_unsupported(&[2, 3], flatten, vec![], "Flatten");
    let flatten = vec![node("Flatten", &["x"], "y").integer("axis", 2)];
    check_unsupported(&[2, 3], flatten, vec![], "Flatten");
}

#[test]
fn shape_arithmetic_of_exporters_is_folded() {
    // x.view(x.size(0), x.size(1) * x.size(2)) with everything computed in the graph.
    let nodes = vec![
        node("Shape", &["x"], "shape"),
        node("Gather", &["shape", "zero"], "batch"),
        node("Unsqueeze", &["batch", "first"], "batches"),
        node("Slice", &["shape", "from", "to"], "sizes"),
        node("Gather", &["sizes", "zero"], "rows"),
        node("Constant", &[], "one").tensor("value", TensorProto { dims: vec![], ..integers("", &[1]) }),
        node("Gather", &["sizes", "one"], "columns"),
        node("Mul", &["rows", "columns"], "features"),
        node("Reshape", &["features", "minus_one"], "features_list"),
        node("Concat", &["batches", "features_list"], "target").integer("axis", 0),
        node("Cast", &["target"], "target_64").integer("to", 7),
        node("Reshape", &["x", "target_64"], "y"),
    ];
    let constants = vec![
        TensorProto { dims: vec![], ..integers("zero", &[0]) },
        integers("first", &[0]),
        integers("from", &[1]),
        integers("to", &[i64::MAX]),
        integers("minus_one", &[-1]),
    ];
    let inputs = array![[1.0, 2.0, 3.0, 4.0]];
    check(&[2, 2], nodes, constants, inputs.clone(), inputs);
}

#[test]
fn constants_are_folded() {
    // Weights [[1, 2], [3, 4]] transposed, halves joined, a bias by sqrt and reciprocal.
    let nodes = vec![
        node("Transpose", &["w"], "wt"),
        node("Slice", &["wt"], "left").integers("starts", &[0]).integers("ends", &[1]).integers("axes", &[1]),
        node("Slice", &["wt"], "right")
            .integers("starts", &[1])
            .integers("ends", &[9])
            .integers("axes", &[1]),
        node("Concat", &["right", "left"], "swapped").integer("axis", -1),
        node("Gemm", &["x", "swapped"], "a"),
        node("Sqrt", &["four"], "root"),
        node("Reciprocal", &["root"], "half"),
        node("Constant", &[], "two").float("value_float", 2.0),
        node("Div", &["half", "two"], "quarter"),
        node("Add", &["a", "quarter"], "y"),
    ];
    let mut old =
        model(&[2], nodes, vec![floats("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), floats("four", &[1], &[4.0])]);
    old.opset_import[0].version = 9;
    // Transposed [[1, 3], [2, 4]], columns swapped [[3, 1], [4, 2]].
    assert_eq!(network(&old).evaluate(two().view()), array![[-4.75, -2.75], [17.75, 8.75]]);
}

#[test]
fn a_softmax_at_the_end_is_dropped() {
    for operator in ["Softmax", "LogSoftmax", "Sigmoid"] {
        check(&[2], vec![node(operator, &["x"], "y")], vec![], two(), two());
    }
    let over_batch = vec![node("Softmax", &["x"], "y").integer("axis", 0)];
    check_unsupported(&[2], over_batch, vec![], "Softmax");
    let inside = vec![node("LogSoftmax", &["x"], "a"), node("Relu", &["a"], "y")];
    check_unsupported(&[2], inside, vec![], "LogSoftmax");
    // Operator set 11 flattens from the axis on, 13 does not.
    let softmax = vec![node("LogSoftmax", &["x"], "a"), node("Flatten", &["a"], "y")];
    let mut wide = model(&[2, 2], softmax.clone(), vec![]);
    wide.opset_import[0].version = 11;
    let row = array![[1.0, 2.0, 3.0, 4.0]];
    assert_eq!(network(&wide).evaluate(row.view()), row);
    check_unsupported(&[2, 2], softmax, vec![], "LogSoftmax");
}

#[test]
fn one_probability_becomes_two_logits() {
    let inputs = array![[3.0], [-2.0]];
    let sigmoid = vec![node("Sigmoid", &["x"], "y")];
    check(&[1], sigmoid, vec![], inputs.clone(), array![[0.0, 3.0], [0.0, -2.0]]);
    let one = || floats("one", &[1], &[1.0]);
    let complement = vec![node("Sigmoid", &["x"], "p"), node("Sub", &["one", "p"], "y")];
    check(&[1], complement, vec![one()], inputs.clone(), array![[0.0, -3.0], [0.0, 2.0]]);
    // scikit-learn's tail, in both orders.
    let joined = |first: &str, second: &str| {
        vec![
            node("Sigmoid", &["x"], "p"),
            node("Sub", &["one", "p"], "q"),
            node("Concat", &[first, second], "y").integer("axis", 1),
        ]
    };
    let expected = array![[0.0, 3.0], [0.0, -2.0]];
    check(&[1], joined("q", "p"), vec![one()], inputs.clone(), expected);
    check(&[1], joined("p", "q"), vec![one()], inputs, array![[3.0, 0.0], [-2.0, 0.0]]);
    // Not a complement: the sigmoid itself is computed.
    let half = floats("one", &[1], &[0.5]);
    let p = |x: f64| 1.0 / (1.0 + (-x).exp());
    let halves = array![[0.5 - p(3.0), p(3.0)], [0.5 - p(-2.0), p(-2.0)]];
    check(&[1], joined("q", "p"), vec![half], array![[3.0], [-2.0]], halves);
    check(&[1], joined("p", "p"), vec![one()], array![[3.0]], array![[p(3.0), p(3.0)]]);
    // One bare score is no vote.
    let error = refusal(&model(&[1], vec![node("Identity", &["x"], "y")], vec![])).to_string();
    assert!(error.contains("end the model with a Sigmoid"), "{error}");
}

#[test]
fn the_label_tail_of_scikit_learn_is_ignored() {
    let mut nodes = vec![
        node("Softmax", &["x"], "probabilities"),
        node("ArgMax", &["probabilities"], "index").integer("axis", 1),
        node("ArrayFeatureExtractor", &["classes", "index"], "label"),
        node("ZipMap", &["probabilities"], "maps"),
    ];
    nodes[2].domain = "ai.onnx.ml".to_owned();
    nodes[3].domain = "ai.onnx.ml".to_owned();
    let mut zip_map = model(&[2], nodes, vec![integers("classes", &[3, 4])]);
    let outputs = &mut zip_map.graph.as_mut().unwrap().output;
    *outputs = vec![typed("label", data_type::INT64, None), sequence("maps")];
    assert_eq!(network(&zip_map).evaluate(two().view()), two());

    let outputs = &mut zip_map.graph.as_mut().unwrap().output;
    *outputs = vec![typed("label", data_type::INT64, None)];
    let error = refusal(&zip_map).to_string();
    assert!(error.contains("\"label\"") && error.contains("not only labels"), "{error}");
}

#[test]
fn the_output_is_chosen_by_its_shape_or_not_at_all() {
    let nodes = vec![node("Gemm", &["x", "w"], "hidden"), node("Relu", &["hidden"], "y")];
    let mut several = model(&[2], nodes, vec![floats("w", &[2, 2], &[1.0, 0.0, 0.0, 1.0])]);
    let outputs = |several: &mut ModelProto, list: Vec<ValueInfoProto>| {
        several.graph.as_mut().unwrap().output = list;
    };
    outputs(&mut several, vec![value_info("hidden", &[None, Some(200)]), value_info("y", &[None, Some(2)])]);
    assert_eq!(network(&several).steps().len(), 2);
    outputs(&mut several, vec![value_info("hidden", &[None, Some(2)]), value_info("y", &[None, Some(2)])]);
    let error = refusal(&several).to_string();
    assert!(error.contains("2 outputs (\"hidden\", \"y\")"), "{error}");
    outputs(&mut several, vec![]);
    assert!(matches!(refusal(&several), ImportError::Output { .. }));
}

#[test]
fn the_output_is_chosen_by_its_name_where_several_could_be() {
    let nodes = vec![node("Relu", &["x"], "y"), node("Neg", &["x"], "z"), node("Shape", &["x"], "s")];
    let mut two = model(&[2], nodes, vec![]);
    let outputs = &mut two.graph.as_mut().unwrap().output;
    outputs.push(value_info("z", &[None, Some(2)]));
    outputs.push(typed("s", data_type::INT64, None));
    outputs[0] = value_info("y", &[None, Some(2)]);
    let bytes = two.encode_to_vec();
    let chosen = |name: &str| import_with(&bytes, &ImportOptions::with_output(Some(name.to_owned())));
    let text = import(&bytes).err().unwrap().to_string();
    assert!(text.contains("2 outputs (\"y\", \"z\")") && text.contains("--output NAME"), "{text}");
    let row = array![[1.0, -2.0]];
    assert_eq!(chosen("y").unwrap().evaluate(row.view()), array![[1.0, 0.0]]);
    assert_eq!(chosen("z").unwrap().evaluate(row.view()), array![[-1.0, 2.0]]);
    let text = chosen("w").err().unwrap().to_string();
    assert!(text.contains("no output \"w\"; choose one of \"y\", \"z\", \"s\" with --output"), "{text}");
    let text = chosen("s").err().unwrap().to_string();
    assert!(text.contains("holds real numbers"), "{text}");
}

#[test]
fn formats_of_weights() {
    let expected = [1.5, -0.25, 2.0, 0.5];
    let halves: [u16; 4] = [0x3e00, 0xb400, 0x4000, 0x3800];
    let brain_halves: [u16; 4] = expected.map(|value: f32| (value.to_bits() >> 16) as u16);
    let doubles = expected.map(f64::from);
    let base =
        |data_type| TensorProto { name: "w".to_owned(), dims: vec![2, 2], data_type, ..Default::default() };
    let bytes = |values: &[u16]| values.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<u8>>();
    let widened = |values: &[u16]| values.iter().map(|&bits| i32::from(bits)).collect::<Vec<i32>>();
    let tensors = [
        TensorProto { float_data: expected.to_vec(), ..base(data_type::FLOAT) },
        floats("w", &[2, 2], &expected),
        TensorProto { double_data: doubles.to_vec(), ..base(data_type::DOUBLE) },
        TensorProto {
            raw_data: doubles.iter().flat_map(|value| value.to_le_bytes()).collect(),
            ..base(data_type::DOUBLE)
        },
        TensorProto { raw_data: bytes(&halves), ..base(data_type::FLOAT16) },
        TensorProto { int32_data: widened(&halves), ..base(data_type::FLOAT16) },
        TensorProto { raw_data: bytes(&brain_halves), ..base(data_type::BFLOAT16) },
        TensorProto { int32_data: widened(&brain_halves), ..base(data_type::BFLOAT16) },
    ];
    for tensor in tensors {
        let format = format!("{tensor:?}");
        let imported = network(&model(&[2], vec![node("MatMul", &["x", "w"], "y")], vec![tensor]));
        let weights = imported.steps()[0].weights.as_ref().unwrap_or_else(|| panic!("{format}"));
        assert_eq!(weights.matrices, array![[[1.5, -0.25], [2.0, 0.5]]], "{format}");
    }
}

#[test]
fn what_cannot_be_computed_is_refused_at_its_node() {
    let w = || floats("w", &[2, 2], &[1.0; 4]);
    check_unsupported(&[2], vec![node("Div", &["x", "x"], "y")], vec![], "Div");
    check_unsupported(&[2], vec![node("Div", &["w", "x"], "y")], vec![floats("w", &[2], &[1.0; 2])], "Div");
    check_unsupported(&[2], vec![node("MatMul", &["x", "x"], "y")], vec![], "MatMul");
    check_unsupported(&[2], vec![node("MatMul", &["w", "x"], "y")], vec![w()], "MatMul");
    check_unsupported(&[2], vec![node("Transpose", &["x"], "y")], vec![], "Transpose");
    let repeated = vec![floats("w", &[3], &[1.0, 2.0, 3.0])];
    let [one, all] = [array![[5.0]], array![[6.0, 7.0, 8.0]]];
    check(&[1], vec![node("Add", &["x", "w"], "y")], repeated, one, all);
    let per_sample = floats("w", &[2, 2], &[1.0; 4]);
    check_unsupported(&[2], vec![node("Add", &["x", "w"], "y")], vec![per_sample], "Add");
    // Two values that depend on the input are added and multiplied.
    check(&[2], vec![node("Add", &["x", "x"], "y")], vec![], two(), 2.0 * two());
    check(&[2], vec![node("Mul", &["x", "x"], "y")], vec![], two(), two() * two());
}

#[test]
fn all_unsupported_nodes_are_listed_with_domain_and_opset() {
    let mut custom = node("Fancy", &["c"], "d");
    custom.domain = "com.example".to_owned();
    let mut unnamed = node("Softsign", &["a"], "b");
    unnamed.name = String::new();
    let nodes = vec![
        node("Conv", &["x", "w"], "a"),
        unnamed,
        node("Relu", &["b"], "c"),
        custom,
        // A division by a value that depends on the input, whatever the nodes before give.
        node("Div", &["d", "x"], "y"),
        // Not used by the output.
        node("LSTM", &["x"], "unused"),
    ];
    let error = refusal(&model(&[2], nodes, vec![floats("w", &[1], &[1.0])]));
    let text = error.to_string();
    let ImportError::Unsupported(refused) = error else { panic!("{text}") };
    let found: Vec<_> = refused
        .nodes
        .iter()
        .map(|node| (node.node.as_str(), node.operator.as_str(), node.domain.as_str(), node.opset))
        .collect();
    assert_eq!(
        found,
        [
            ("Conv_a", "Conv", "ai.onnx", Some(17)),
            ("without name, output b", "Softsign", "ai.onnx", Some(17)),
            ("Fancy_d", "Fancy", "com.example", None),
            ("Div_y", "Div", "ai.onnx", Some(17)),
        ]
    );
    assert!(text.contains("4 unsupported nodes:\n  Conv_a: Conv (ai.onnx, opset 17)"), "{text}");
    assert!(text.contains("use Relu, LeakyRelu, Tanh, Sigmoid, Gelu or the like between layers"), "{text}");
}

#[test]
fn operator_sets_outside_the_limits_are_refused() {
    let mut old = model(&[2], vec![node("Relu", &["x"], "y")], vec![]);
    for version in [6, 29, i64::MIN, i64::MAX] {
        old.opset_import[0].version = version;
        let error = refusal(&old);
        assert!(matches!(error, ImportError::OperatorSet { found: Some(found) } if found == version));
        assert!(error.to_string().contains("opset_version 7 to 28"), "{error}");
    }
    old.opset_import.clear();
    assert!(matches!(refusal(&old), ImportError::OperatorSet { found: None }));
}
