//! What exporters and optimisers write around the operators: layers on the rows of all samples, fused operators,
//! reductions, repeated and rearranged images, and the probabilities at the end of classical models.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{
    WithAttributes, floats,
    graphs::{check, head, network, numbers, operations},
    integers, node,
};
use concilium_network::{
    Network,
    onnx::{NodeProto, TensorProto},
};
use ndarray::{ArrayD, Axis, IxDyn, array};

fn in_domain(mut node: NodeProto, domain: &str) -> NodeProto {
    node.domain = domain.to_owned();
    node
}

fn matrix(name: &str, rows: usize, columns: usize, seed: u64) -> (TensorProto, ndarray::Array2<f64>) {
    let values = numbers(seed, rows * columns);
    let array = ndarray::Array2::from_shape_vec((rows, columns), values.iter().map(|&v| v.into()).collect());
    (floats(name, &[rows as i64, columns as i64], &values), array.unwrap())
}

/// The text of a refusal, which names the node `a`.
#[track_caller]
fn refused(shape: &[i64], mut nodes: Vec<NodeProto>, mut constants: Vec<TensorProto>) -> String {
    let (more, weights) = head("a", 4);
    nodes.extend(more);
    constants.extend(weights);
    let text = network(shape, nodes, constants).err().unwrap().to_string();
    assert!(text.contains("_a"), "{text}");
    text
}

#[test]
fn layers_on_the_rows_of_all_samples_are_layers_at_each_position() {
    let (first, one) = matrix("w", 4, 6, 1);
    let (second, two) = matrix("v", 6, 3, 2);
    let reshapes = || [node("Reshape", &["x", "merged"], "r"), node("Reshape", &["t", "whole"], "a")];
    let [flat, whole] = reshapes();
    let nodes = vec![
        flat,
        node("Gemm", &["r", "w", "b"], "p").float("alpha", 0.5),
        node("Relu", &["p"], "q"),
        node("Sigmoid", &["q"], "o"),
        node("Add", &["o", "b"], "s"),
        node("MatMul", &["s", "v"], "t"),
        whole,
    ];
    let constants = |whole: &[i64]| {
        vec![
            first.clone(),
            second.clone(),
            floats("b", &[6], &[0.5, -0.5, 0.25, 0.0, 1.0, -1.0]),
            integers("merged", &[-1, 4]),
            integers("whole", whole),
        ]
    };
    let bias = array![0.5, -0.5, 0.25, 0.0, 1.0, -1.0];
    let found = check(&[5, 4], nodes.clone(), constants(&[-1, 5, 3]), |x| {
        let x = x.view().into_dimensionality::<ndarray::Ix2>().unwrap();
        let inner = (x.dot(&one) * 0.5 + &bias).mapv(|value| 1.0 / (1.0 + (-value.max(0.0)).exp())) + &bias;
        inner.dot(&two).into_dyn()
    });
    assert_eq!(operations(&found)[0], "convolution");
    assert_eq!(found.steps()[0].operation.parameters(), 4 * 6 + 6);
    // What would mix positions and samples is refused where it does.
    let text = refused(&[5, 4], vec![nodes[0].clone(), node("Transpose", &["r"], "a")], constants(&[1]));
    assert!(text.contains("positions and samples alike"), "{text}");
    let per_row = vec![floats("k", &[5, 4], &numbers(3, 20)), integers("merged", &[-1, 4])];
    let text = refused(&[5, 4], vec![nodes[0].clone(), node("Add", &["r", "k"], "a")], per_row);
    assert!(text.contains("positions and samples alike"), "{text}");
}

#[test]
fn fused_operators_of_the_runtime_are_taken_apart() {
    let runtime = |operator: &str, inputs: &[&str], output: &str| {
        in_domain(node(operator, inputs, output), "com.microsoft")
    };
    let (weights, w) = matrix("w", 4, 6, 1);
    for (name, parameter, function) in [
        ("Relu", None, (|x| x.max(0.0)) as fn(f64) -> f64),
        ("LeakyRelu", Some(0.25), |x| x.max(0.25 * x)),
        ("Tanh", None, f64::tanh),
        ("Sigmoid", None, |x| 1.0 / (1.0 + (-x).exp())),
    ] {
        let mut fused = runtime("FusedGemm", &["x", "w"], "a").text("activation", name);
        if let Some(parameter) = parameter {
            fused = fused.float("activation_alpha", parameter);
        }
        check(&[4], vec![fused], vec![weights.clone()], |x| {
            let x = x.view().into_dimensionality::<ndarray::Ix1>().unwrap();
            x.dot(&w).mapv(function).into_dyn()
        });
    }
    let scaled = runtime("FusedMatMul", &["x", "w"], "a").float("alpha", 0.125);
    check(&[4], vec![scaled], vec![weights.clone()], |x| {
        x.view().into_dimensionality::<ndarray::Ix1>().unwrap().dot(&w).mapv(|x| 0.125 * x).into_dyn()
    });
    let kernel = floats("k", &[2, 2, 1, 1], &[1.0, -1.0, 0.5, 2.0]);
    let fused = runtime("FusedConv", &["x", "k", "", "x"], "a").text("activation", "Relu");
    check(&[2, 2, 2], vec![fused], vec![kernel], |x| {
        ArrayD::from_shape_fn(IxDyn(&[2, 2, 2]), |i| {
            let at = |channel: usize| x[[channel, i[1], i[2]]];
            let sum = if i[0] == 0 { at(0) - at(1) } else { 0.5 * at(0) + 2.0 * at(1) };
            (sum + at(i[0])).max(0.0)
        })
    });
    let quick = runtime("QuickGelu", &["x"], "a");
    check(&[4], vec![quick], vec![], |x| x.mapv(|x| x / (1.0 + (-1.702_f32 as f64 * x).exp())));
    let transposed = runtime("FusedMatMul", &["x", "w"], "a").integer("transB", 1);
    assert!(refused(&[4], vec![transposed], vec![weights]).contains("transB is not read"));
}

#[test]
fn reductions_and_powers_are_taken_along_dimensions_of_a_sample() {
    let reduced = |operator: &str| node(operator, &["x"], "a").integers("axes", &[2]).integer("keepdims", 0);
    let lanes =
        |x: &ArrayD<f64>, reduce: fn(&[f64]) -> f64| x.map_axis(Axis(1), |lane| reduce(&lane.to_vec()));
    let largest = |lane: &[f64]| lane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let smallest = |lane: &[f64]| lane.iter().copied().fold(f64::INFINITY, f64::min);
    check(&[3, 5], vec![reduced("ReduceMax")], vec![], |x| lanes(x, largest));
    check(&[3, 5], vec![reduced("ReduceMin")], vec![], |x| lanes(x, smallest));
    check(&[3, 5], vec![reduced("ReduceL1")], vec![], |x| {
        lanes(x, |lane| lane.iter().map(|x| x.abs()).sum())
    });
    check(&[3, 5], vec![reduced("ReduceSumSquare")], vec![], |x| {
        lanes(x, |lane| lane.iter().map(|x| x * x).sum())
    });
    check(&[3, 5], vec![reduced("ReduceProd")], vec![], |x| lanes(x, |lane| lane.iter().product()));
    check(&[3, 4], vec![reduced("ReduceProd")], vec![], |x| lanes(x, |lane| lane.iter().product()));
    for exponent in [1, 2, 3, 4] {
        let power = vec![node("Pow", &["x", "e"], "a")];
        check(&[6], power, vec![floats("e", &[], &[exponent as f32])], |x| x.mapv(|x| x.powi(exponent)));
    }
    let root = vec![node("Pow", &["x", "e"], "a")];
    assert!(refused(&[4], root, vec![floats("e", &[], &[0.5])]).contains("powers 1 to 4"));
    let thresholded = vec![node("ThresholdedRelu", &["x"], "a").float("alpha", 0.25)];
    check(&[6], thresholded, vec![], |x| x.mapv(|x| if x > 0.25 { x } else { 0.0 }));
    // Shapes: all but the batch in one dimension.
    let nodes = vec![
        node("Shape", &["x"], "s"),
        node("Slice", &["s", "one", "end"], "rest"),
        node("ReduceProd", &["rest"], "product").integer("keepdims", 1),
        node("Slice", &["s", "zero", "one"], "batch"),
        node("Concat", &["batch", "product"], "shape").integer("axis", 0),
        node("Reshape", &["x", "shape"], "a"),
    ];
    let constants = vec![integers("zero", &[0]), integers("one", &[1]), integers("end", &[9])];
    check(&[2, 3, 2], nodes, constants, |x| x.clone());
}

#[test]
fn images_are_rearranged_and_repeated_without_messages() {
    let blocks = |operator: &str| node(operator, &["x"], "a").integer("blocksize", 2);
    let found = check(&[2, 4, 4], vec![blocks("SpaceToDepth")], vec![], |x| {
        ArrayD::from_shape_fn(IxDyn(&[8, 2, 2]), |i| {
            x[[i[0] % 2, 2 * i[1] + i[0] / 4, 2 * i[2] + i[0] / 2 % 2]]
        })
    });
    assert_eq!(operations(&found), ["gather", "dense"]);
    check(&[2, 4, 4], vec![blocks("SpaceToDepth").text("mode", "CRD")], vec![], |x| {
        ArrayD::from_shape_fn(IxDyn(&[8, 2, 2]), |i| {
            x[[i[0] / 4, 2 * i[1] + i[0] / 2 % 2, 2 * i[2] + i[0] % 2]]
        })
    });
    check(&[8, 2, 2], vec![blocks("DepthToSpace")], vec![], |x| {
        ArrayD::from_shape_fn(IxDyn(&[2, 4, 4]), |i| {
            x[[(i[1] % 2 * 2 + i[2] % 2) * 2 + i[0], i[1] / 2, i[2] / 2]]
        })
    });
    check(&[8, 2, 2], vec![blocks("DepthToSpace").text("mode", "CRD")], vec![], |x| {
        ArrayD::from_shape_fn(IxDyn(&[2, 4, 4]), |i| {
            x[[i[0] * 4 + i[1] % 2 * 2 + i[2] % 2, i[1] / 2, i[2] / 2]]
        })
    });
    let resize = |mode: &str| {
        node("Resize", &["x", "", "s"], "a")
            .text("mode", mode)
            .text("coordinate_transformation_mode", "asymmetric")
            .text("nearest_mode", "floor")
    };
    let scales = |numbers: &[f32]| vec![floats("s", &[4], numbers)];
    check(&[2, 2, 2], vec![resize("nearest")], scales(&[1.0, 1.0, 2.0, 3.0]), |x| {
        ArrayD::from_shape_fn(IxDyn(&[2, 4, 6]), |i| x[[i[0], i[1] / 2, i[2] / 3]])
    });
    assert!(
        refused(&[1, 2, 2], vec![resize("linear")], scales(&[1.0, 1.0, 2.0, 2.0])).contains("whole factors")
    );
    assert!(
        refused(&[1, 2, 2], vec![resize("nearest")], scales(&[1.0, 1.0, 1.5, 2.0])).contains("whole factors")
    );
    assert!(refused(&[1, 2, 2], vec![resize("nearest")], scales(&[2.0, 1.0, 1.0, 2.0])).contains("batch"));
}

#[test]
fn constants_stand_beside_values_and_repeat_them() {
    // A token in front of a sequence, one for every sample.
    let nodes = vec![
        node("Shape", &["x"], "s"),
        node("Slice", &["s", "zero", "one"], "batch"),
        node("Concat", &["batch", "one", "width"], "shape").integer("axis", 0),
        node("Expand", &["token", "shape"], "first"),
        node("Concat", &["first", "x"], "a").integer("axis", 1),
    ];
    let constants = vec![
        integers("zero", &[0]),
        integers("one", &[1]),
        integers("width", &[3]),
        floats("token", &[1, 1, 3], &[0.5, -1.5, 0.25]),
    ];
    check(&[2, 3], nodes, constants, |x| {
        let token = array![[0.5, -1.5, 0.25]].into_dyn();
        ndarray::concatenate(Axis(0), &[token.view(), x.view()]).unwrap()
    });
    let filled = node("ConstantOfShape", &["k"], "c").tensor("value", floats("", &[1], &[0.75]));
    let nodes = vec![filled, node("Concat", &["x", "c"], "a").integer("axis", 1)];
    check(&[2], nodes, vec![integers("k", &[1, 2])], |x| {
        ndarray::concatenate![Axis(0), x.view(), array![0.75, 0.75].into_dyn()]
    });
    // Distances from several points.
    let points = [0.5, -0.25, 1.0, 0.0, -1.0, 0.125_f32];
    let nodes = vec![node("Reshape", &["x", "row"], "r"), node("Sub", &["r", "points"], "a")];
    check(&[2], nodes, vec![integers("row", &[-1, 1, 2]), floats("points", &[3, 2], &points)], |x| {
        ArrayD::from_shape_fn(IxDyn(&[3, 2]), |i| x[[i[1]]] - f64::from(points[2 * i[0] + i[1]]))
    });
    let per_sample = vec![floats("c", &[2, 2], &[1.0; 4])];
    let text = refused(&[2], vec![node("Concat", &["x", "c"], "a").integer("axis", 1)], per_sample);
    assert!(text.contains("differ from sample to sample"), "{text}");
}

/// The logits of a model of two layers' worth of nodes that end in `y`.
fn logits(nodes: Vec<NodeProto>, constants: Vec<TensorProto>) -> Result<Network, String> {
    network(&[3], nodes, constants).map_err(|error| error.to_string())
}

#[test]
fn probabilities_that_keep_the_order_of_the_classes_cost_nothing() {
    let row = array![[0.5, -2.0, 1.5], [3.0, 0.25, -1.0]];
    let axes = |node: NodeProto| node.integers("axes", &[1]).integer("keepdims", 1);
    let tails = [
        vec![
            axes(node("ReduceLogSumExp", &["x"], "t")),
            node("Reshape", &["t", "column"], "u"),
            node("Sub", &["x", "u"], "p"),
            node("Exp", &["p"], "y"),
        ],
        vec![node("Exp", &["x"], "e"), axes(node("ReduceSum", &["e"], "t")), node("Div", &["e", "t"], "y")],
        vec![node("Softmax", &["x"], "p"), node("Log", &["p"], "y")],
        vec![
            node("Softmax", &["x"], "p"),
            node("Clip", &["p", "tiny", "one"], "q"),
            node("Log", &["q"], "y"),
        ],
    ];
    let constants =
        || vec![integers("column", &[-1, 1]), floats("tiny", &[], &[1e-7]), floats("one", &[], &[1.0])];
    for nodes in tails {
        let network = logits(nodes, constants()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(network.evaluate(row.view()), row);
        assert_eq!(operations(&network), ["convolution"]);
    }
    // Not the sum of the same scores, and a logarithm of something that can be negative.
    let other = vec![
        node("Relu", &["x"], "r"),
        axes(node("ReduceLogSumExp", &["r"], "t")),
        node("Sub", &["x", "t"], "y"),
    ];
    assert!(logits(other, vec![]).err().unwrap().contains("ReduceLogSumExp_t"));
    assert!(logits(vec![node("Log", &["x"], "y")], vec![]).err().unwrap().contains("Log_y"));
    let inside = vec![node("Exp", &["x"], "e"), node("Relu", &["e"], "y")];
    let text = logits(inside, vec![]).err().unwrap();
    assert!(text.contains("Exp_e") && text.contains("only allowed after the last layer"), "{text}");
}

#[test]
fn columns_are_chosen_and_cut_by_operators_of_classical_models() {
    let classical = |operator: &str, inputs: &[&str], output: &str| {
        in_domain(node(operator, inputs, output), "ai.onnx.ml")
    };
    let columns = vec![classical("ArrayFeatureExtractor", &["x", "c"], "a")];
    check(&[4], columns, vec![integers("c", &[3, 0, 3])], |x| array![x[[3]], x[[0]], x[[3]]].into_dyn());
    let binarizer = vec![classical("Binarizer", &["x"], "a").float("threshold", 0.125)];
    check(&[4], binarizer, vec![], |x| x.mapv(|x| f64::from(x > 0.125)));
    let imputer = |replaced: f32| {
        vec![
            classical("Imputer", &["x"], "a")
                .float("replaced_value_float", replaced)
                .float("imputed_value_floats", 1.0),
        ]
    };
    check(&[4], imputer(f32::NAN), vec![], |x| x.clone());
    assert!(refused(&[4], imputer(-1.0), vec![]).contains("fill in missing values before"));
    let beyond = vec![classical("ArrayFeatureExtractor", &["x", "c"], "a")];
    assert!(refused(&[4], beyond, vec![integers("c", &[4])]).contains("axis 4"));
}
