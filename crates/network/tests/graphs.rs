//! Sums of values, rectifiers, smooth functions and layouts: import against arithmetic written out here, and
//! fixed point within its proven bounds.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{
    WithAttributes, floats,
    graphs::{check, head, network, operations},
    integers, node,
};
use concilium_network::{
    ImportError, InputDomain, Network, Operation, Ring, Rounding, choose_fractional_bits,
    onnx::{AttributeProto, NodeProto},
    quantise,
};
use ndarray::{ArrayD, Axis, Ix3, IxDyn};

#[test]
fn rectifiers_clip_and_gate_elementwise() {
    let elementwise = |operator: &str, function: fn(f64) -> f64| {
        check(&[5], vec![node(operator, &["x"], "a")], vec![], |x| x.mapv(function))
    };
    elementwise("Abs", f64::abs);
    elementwise("HardSigmoid", |x| (0.2 * x + 0.5).clamp(0.0, 1.0));
    let swish = elementwise("HardSwish", |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0));
    assert!(operations(&swish).contains(&"multiply"));
    let leaky = node("LeakyRelu", &["x"], "a").float("alpha", 0.25);
    check(&[5], vec![leaky], vec![], |x| x.mapv(|x| if x < 0.0 { 0.25 * x } else { x }));
    for slopes in [[0.5, 0.0, 1.0], [2.0, -1.0, 0.5]] {
        let nodes = vec![node("PRelu", &["x", "slope"], "a")];
        check(&[3, 2], nodes, vec![floats("slope", &[3, 1], &slopes)], |x| {
            let mut x = x.clone();
            for (mut channel, slope) in x.outer_iter_mut().zip(slopes) {
                channel.mapv_inplace(|x| if x < 0.0 { f64::from(slope) * x } else { x });
            }
            x
        });
    }
    let bound = |name: &str, value: f32| floats(name, &[], &[value]);
    for (low, high) in [(Some(-0.25), Some(0.5)), (Some(0.0), None), (None, Some(0.125)), (None, None)] {
        let names = [low.map_or("", |_| "low"), high.map_or("", |_| "high")];
        let constants = [low.map(|low| bound("low", low)), high.map(|high| bound("high", high))];
        let nodes = vec![node("Clip", &["x", names[0], names[1]], "a")];
        let network = check(&[5], nodes, constants.into_iter().flatten().collect(), |x| {
            x.mapv(|x| x.clamp(low.map_or(f64::MIN, f64::from), high.map_or(f64::MAX, f64::from)))
        });
        assert_eq!(network.depth(), if low.is_some() || high.is_some() { 2 } else { 1 }, "{low:?} {high:?}");
    }
    let nodes = vec![node("Max", &["x", "k"], "m"), node("Min", &["m", "x", "n"], "a")];
    check(&[4], nodes, vec![bound("k", -0.5), bound("n", 0.25)], |x| {
        x.mapv(|x| x.max(-0.5).min(x).min(0.25))
    });
    let gate = vec![node("Sub", &["x", "k"], "s"), node("Mul", &["s", "x"], "a")];
    check(&[4], gate, vec![bound("k", 0.5)], |x| x.mapv(|x| (x - 0.5) * x));
}

/// Numbers far into both tails: the input times 9.
#[track_caller]
fn check_smooth(last: NodeProto, more: Vec<NodeProto>, function: fn(f64) -> f64) -> Network {
    let mut nodes = vec![node("Mul", &["x", "nine"], "wide")];
    nodes.extend(more);
    nodes.push(last);
    check(&[64], nodes, vec![floats("nine", &[], &[9.0])], |x| x.mapv(|x| function(9.0 * x)))
}

#[test]
fn smooth_functions_are_themselves_and_their_pieces_are_near() {
    let smooth = |operator: &str, function| check_smooth(node(operator, &["wide"], "a"), vec![], function);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    assert_eq!(operations(&smooth("Tanh", f64::tanh)), ["convolution", "tanh", "dense"]);
    smooth("Sigmoid", sigmoid);
    smooth("Softplus", |x| x.exp().ln_1p());
    smooth("Erf", libm::erf);
    smooth("Mish", |x| x * x.exp().ln_1p().tanh());
    smooth("Swish", |x| x / (1.0 + (-x).exp()));
    smooth("Gelu", |x| 0.5 * x * (1.0 + libm::erf(x / 2_f64.sqrt())));
    smooth("Elu", |x| if x > 0.0 { x } else { x.exp_m1() });
    smooth("Selu", |x| 1.050_701 * if x > 0.0 { x } else { 1.673_263_2 * x.exp_m1() });
    let by_tanh = node("Gelu", &["wide"], "a").text("approximate", "tanh");
    check_smooth(by_tanh, vec![], |x| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
    });
    let steep = node("Elu", &["wide"], "a").float("alpha", 0.5);
    check_smooth(steep, vec![], |x| if x > 0.0 { x } else { 0.5 * x.exp_m1() });
    let wide = node("Celu", &["wide"], "a").float("alpha", 2.0);
    check_smooth(wide, vec![], |x| x.max(0.0) + (2.0 * (x / 2.0).exp_m1()).min(0.0));
    let swish = node("Swish", &["wide"], "a").float("alpha", 0.5);
    check_smooth(swish, vec![], |x| x / (1.0 + (-0.5 * x).exp()));
}

#[test]
fn a_sigmoid_between_layers_is_computed_and_one_that_gates_its_own_input_is_a_function() {
    let gate = |first: &str, second: &str| {
        let last = node("Mul", &[first, second], "a");
        check_smooth(last, vec![node("Sigmoid", &["wide"], "s")], |x| x / (1.0 + (-x).exp()))
    };
    for network in [gate("wide", "s"), gate("s", "wide")] {
        assert_eq!(operations(&network), ["convolution", "silu", "dense"]);
    }
    let other = vec![node("Sigmoid", &["wide"], "s"), node("Tanh", &["wide"], "t")];
    let network = check_smooth(node("Mul", &["t", "s"], "a"), other, |x| x.tanh() / (1.0 + (-x).exp()));
    assert_eq!(operations(&network), ["convolution", "tanh", "sigmoid", "multiply", "dense"]);
    let twice = vec![node("Sigmoid", &["wide"], "s")];
    check_smooth(node("Sigmoid", &["s"], "a"), twice, |x| 1.0 / (1.0 + (-1.0 / (1.0 + (-x).exp())).exp()));
}

/// e^x / Σ e^x of a row.
fn softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = row.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[test]
fn a_softmax_between_layers_is_computed_along_its_axis() {
    // Of all numbers of a sample, of rows, and of columns; an odd number and one alone.
    let nodes = vec![node("Softmax", &["x"], "p"), node("Relu", &["p"], "a")];
    let network = check(&[5], nodes, vec![], |x| {
        ArrayD::from_shape_vec(IxDyn(&[5]), softmax(&x.iter().copied().collect::<Vec<_>>())).unwrap()
    });
    let names = operations(&network);
    assert_eq!(names.iter().filter(|&&name| name == "maximum").count(), 3, "{names:?}");
    assert!(names.contains(&"reciprocal") && names.contains(&"exponential"), "{names:?}");
    for (axis, shape) in [(-1, [3, 4]), (2, [3, 1]), (1, [3, 4]), (-2, [6, 2])] {
        let nodes = vec![node("Softmax", &["x"], "a").integer("axis", axis)];
        let axis = if axis == 1 || axis == -2 { Axis(0) } else { Axis(1) };
        check(&shape, nodes, vec![], |x| {
            let mut result = x.clone();
            for mut lane in result.lanes_mut(axis) {
                let values = softmax(&lane.to_vec());
                lane.iter_mut().zip(values).for_each(|(number, value)| *number = value);
            }
            result
        });
    }
    let long = vec![node("Softmax", &["x"], "a").integer("axis", 2)];
    let (more, weights) = head("a", 514);
    let refused = common::graphs::network(&[2, 257], long.into_iter().chain(more).collect(), weights);
    let text = refused.err().unwrap().to_string();
    assert!(text.contains("Softmax_a") && text.contains("at most 256 numbers, not 257"), "{text}");
}

#[test]
fn layouts_move_numbers_without_messages() {
    let moved = |nodes, constants, expected: fn(&ArrayD<f64>) -> ArrayD<f64>| {
        let network = check(&[2, 3, 4], nodes, constants, expected);
        assert_eq!(network.depth(), 1);
        network
    };
    let relaid = vec![node("Transpose", &["x"], "a").integers("perm", &[0, 3, 1, 2])];
    moved(relaid, vec![], |x| x.view().permuted_axes(IxDyn(&[2, 0, 1])).as_standard_layout().into_owned());
    let slice = vec![node("Slice", &["x", "from", "to", "axes", "steps"], "a")];
    let constants = vec![
        integers("from", &[1, -1]),
        integers("to", &[3, i64::MIN]),
        integers("axes", &[2, 3]),
        integers("steps", &[1, -2]),
    ];
    moved(slice, constants, |x| {
        let x = x.view().into_dimensionality::<Ix3>().unwrap();
        x.slice(ndarray::s![.., 1..3, ..;-2]).as_standard_layout().into_owned().into_dyn()
    });
    let pick = vec![node("Gather", &["x", "index"], "a").integer("axis", 2)];
    moved(pick, vec![integers("index", &[2, 0, -1])], |x| x.select(Axis(1), &[2, 0, 2]));
    for axis in [1, 2, 3] {
        let nodes = vec![node("Neg", &["x"], "n"), node("Concat", &["x", "n"], "a").integer("axis", axis)];
        let network = check(&[2, 3, 4], nodes, vec![], |x| {
            ndarray::concatenate(Axis(axis as usize - 1), &[x.view(), (-x).view()]).unwrap()
        });
        assert_eq!(network.depth(), 1, "a change of sign takes no message");
    }
    for mode in ["constant", "edge", "reflect"] {
        let mut pad = node("Pad", &["x", "pads"], "a");
        pad.attribute.push(AttributeProto {
            name: "mode".to_owned(),
            s: Some(mode.as_bytes().to_vec()),
            r#type: 3,
            ..Default::default()
        });
        let network = check(&[2, 3, 4], vec![pad], vec![integers("pads", &[0, 0, 1, 2, 0, 0, 0, 1])], |x| {
            ArrayD::from_shape_fn(IxDyn(&[2, 4, 7]), |index| {
                let [row, column] = [(1, 1, 3_i64), (2, 2, 4)].map(|(axis, before, size)| {
                    let place = index[axis] as i64 - before;
                    match mode {
                        "edge" => place.clamp(0, size - 1),
                        "reflect" if place < 0 => -place,
                        "reflect" if place >= size => 2 * (size - 1) - place,
                        _ => place,
                    }
                });
                let inside = (0..3).contains(&row) && (0..4).contains(&column);
                if inside { x[[index[0], row as usize, column as usize]] } else { 0.0 }
            })
        });
        assert_eq!(operations(&network), ["gather", "dense"], "{mode}");
    }
    let repeat = vec![node("ReduceSum", &["x", "axes"], "s"), node("Expand", &["s", "shape"], "a")];
    let constants = vec![integers("axes", &[2]), integers("shape", &[1, 1, 3, 1])];
    moved(repeat, constants, |x| {
        let sums = x.sum_axis(Axis(1)).insert_axis(Axis(1));
        sums.broadcast(IxDyn(&[2, 3, 4])).unwrap().to_owned()
    });
    // What moves the samples of a batch is refused at its node.
    for nodes in [
        vec![node("Transpose", &["x"], "a").integers("perm", &[1, 0, 2, 3])],
        vec![node("Concat", &["x", "x"], "a").integer("axis", 0)],
        vec![node("Gather", &["x", "index"], "a")],
        vec![node("ReduceSum", &["x"], "a")],
    ] {
        let operator = nodes[0].op_type.clone();
        let (more, weights) = head("a", 24);
        let constants = [weights, vec![integers("index", &[0])]].concat();
        match network(&[2, 3, 4], [nodes, more].concat(), constants) {
            Err(ImportError::Unsupported(refused)) => assert_eq!(refused.nodes[0].operator, operator),
            Err(error) => panic!("{operator}: {error}"),
            Ok(_) => panic!("{operator} must be refused"),
        }
    }
}

#[test]
fn parts_of_a_value_are_taken_apart_and_added_up() {
    let split = |sizes: Option<&[i64]>, parts: &[&str]| {
        let mut split = node("Split", &["x"], parts[0]).integer("axis", 1);
        split.output = parts.iter().map(|part| (*part).to_owned()).collect();
        if sizes.is_some() {
            split.input.push("sizes".to_owned());
        }
        split
    };
    // Halves, swapped and subtracted: [second - first, first].
    let nodes = vec![
        split(None, &["p", "q"]),
        node("Sub", &["q", "p"], "d"),
        node("Concat", &["d", "p"], "a").integer("axis", 1),
    ];
    check(&[6], nodes, vec![], |x| {
        let part = |place: usize| x[[place % 6]];
        ArrayD::from_shape_fn(IxDyn(&[6]), |i| {
            if i[0] < 3 { part(i[0] + 3) - part(i[0]) } else { part(i[0] - 3) }
        })
    });
    // Parts of given sizes, and a sum of all of the same size with a constant.
    let nodes = vec![
        split(Some(&[2, 3, 2]), &["p", "q", "r"]),
        node("Relu", &["r"], "s"),
        node("Sum", &["p", "s", "k", "p"], "a"),
    ];
    let constants = vec![integers("sizes", &[2, 3, 2]), floats("k", &[2], &[0.5, -0.25])];
    check(&[7], nodes, constants, |x| {
        ArrayD::from_shape_fn(IxDyn(&[2]), |i| 2.0 * x[[i[0]]] + x[[i[0] + 5]].max(0.0) + [0.5, -0.25][i[0]])
    });
    let refused = |sizes: &[i64]| {
        let nodes = vec![split(Some(sizes), &["p", "y"])];
        network(&[4], nodes, vec![integers("sizes", sizes)]).err().expect("must be refused").to_string()
    };
    for sizes in [&[2, 3][..], &[4, 0], &[5, -1], &[4], &[i64::MAX, i64::MAX]] {
        assert!(refused(sizes).contains("2 parts of 4 numbers in all"), "{sizes:?}");
    }
}

#[test]
fn features_of_different_scales_reach_what_is_no_product() {
    // Column 0 goes to 4000, column 1 to 0.001; ReLU cannot take the scales up, so a step does.
    let nodes = vec![node("Relu", &["x"], "r"), node("Gemm", &["r", "w"], "y")];
    let network = network(&[2], nodes, vec![floats("w", &[2, 2], &[0.001, -0.002, 500.0, 900.0])]).unwrap();
    assert_eq!(operations(&network), ["relu", "dense"]);
    let domain = InputDomain::new(vec![2], vec![-4000.0, -0.25], vec![4000.0, 0.25]).unwrap();
    let bits = choose_fractional_bits(Ring::Bits64, [&network], &domain).unwrap();
    let fixed = quantise(&network, &domain, bits).unwrap();
    assert_eq!(fixed.steps()[0].name, "scales of the features");
    assert!(matches!(fixed.steps()[1].operation, Operation::Relu));
    let rows = ndarray::array![[3999.0, 0.25], [-1.0, 0.125], [17.5, -0.25]];
    let encoded = domain.encode(rows.view(), bits).unwrap();
    let logits = fixed.evaluate(encoded.view(), Rounding::Nearest);
    let exact = network.evaluate(rows.view());
    for ((row, class), &logit) in logits.indexed_iter() {
        let error = (logit as f64 * 2_f64.powi(-(bits as i32)) - exact[(row, class)]).abs();
        assert!(error <= fixed.error_bounds()[class], "{error} > {}", fixed.error_bounds()[class]);
    }
}
