//! Convolutions, pooling, sums of values and rectifiers: import against arithmetic written out here, and
//! fixed point within its proven bounds.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{WithAttributes, floats, integers, model, node};
use concilium_network::{
    Architecture, ImportError, InputDomain, Network, Operation, Rounding, choose_fractional_bits, import,
    onnx::{AttributeProto, NodeProto, TensorProto},
    quantise,
};
use ndarray::{Array2, ArrayD, Axis, Ix3, IxDyn};
use proptest::{collection::vec, prelude::*};
use prost::Message;

/// Numbers from -1 to 1 that repeat after a long while.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut word = seed | 1;
    let mut next = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((word >> 40) as f32 / (1 << 23) as f32) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn network(
    shape: &[i64],
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
) -> Result<Network, ImportError> {
    import(&model(shape, nodes, constants).encode_to_vec())
}

/// Adds a dense layer from `features` numbers of `from` to three logits.
fn head(from: &str, features: usize) -> (Vec<NodeProto>, Vec<TensorProto>) {
    let nodes = vec![node("Flatten", &[from], "flat"), node("Gemm", &["flat", "head"], "y")];
    (nodes, vec![floats("head", &[features as i64, 3], &numbers(99, 3 * features))])
}

/// The value `from` of a graph, through a dense layer whose weights are known to be the identity where
/// there are few enough numbers, else random ones.
fn logits_of(values: &[f64], features: usize) -> Vec<f64> {
    let weights = numbers(99, 3 * features);
    (0..3).map(|class| (0..features).map(|i| values[i] * f64::from(weights[3 * i + class])).sum()).collect()
}

/// Evaluates `nodes`, which compute `a` from `x`, and compares with `expected`; then in fixed point.
#[track_caller]
fn check(
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
fn check_fixed(network: &Network, shape: &[usize], rows: &Array2<f64>) {
    let domain = InputDomain::new(shape.to_vec(), vec![-1.0], vec![1.0]).unwrap();
    let bits = choose_fractional_bits([network], &domain).unwrap_or_else(|error| panic!("{error}"));
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

fn operations(network: &Network) -> Vec<&'static str> {
    network.steps().iter().map(|step| step.operation.name()).collect()
}

#[derive(Clone, Debug)]
struct Windows {
    channels: usize,
    outputs: usize,
    groups: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    pads: [usize; 4],
}

impl Windows {
    fn output(&self, axis: usize) -> usize {
        let padded = self.size[axis] + self.pads[axis] + self.pads[axis + 2];
        (padded - self.dilations[axis] * (self.kernel[axis] - 1) - 1) / self.strides[axis] + 1
    }

    /// The number that element (row, column) of the window at (top, left) sees, unless it is padding.
    fn seen(&self, x: &ArrayD<f64>, channel: usize, window: [usize; 2], tap: [usize; 2]) -> Option<f64> {
        let place = |axis: usize| {
            let place = window[axis] * self.strides[axis] + tap[axis] * self.dilations[axis];
            place.checked_sub(self.pads[axis]).filter(|&place| place < self.size[axis])
        };
        Some(x[[channel, place(0)?, place(1)?]])
    }

    fn attributes(&self, node: NodeProto) -> NodeProto {
        let list = |values: &[usize]| values.iter().map(|&value| value as i64).collect::<Vec<_>>();
        node.integers("strides", &list(&self.strides))
            .integers("dilations", &list(&self.dilations))
            .integers("pads", &list(&self.pads))
            .integers("kernel_shape", &list(&self.kernel))
    }

    /// A value for each channel of the result and each window.
    fn each(&self, channels: usize, value: impl Fn(usize, [usize; 2]) -> f64) -> ArrayD<f64> {
        let shape = [channels, self.output(0), self.output(1)];
        ArrayD::from_shape_fn(IxDyn(&shape), |index| value(index[0], [index[1], index[2]]))
    }

    fn taps(&self) -> impl Iterator<Item = [usize; 2]> {
        let [height, width] = self.kernel;
        (0..height * width).map(move |tap| [tap / width, tap % width])
    }
}

fn any_windows() -> impl Strategy<Value = Windows> {
    (vec(1_usize..3, 3), vec(3_usize..7, 2), vec(1_usize..4, 2), vec(1_usize..3, 4), vec(0_usize..2, 4))
        .prop_map(|(groups, size, kernel, steps, pads)| Windows {
            channels: groups[0] * groups[1],
            outputs: groups[0] * groups[2],
            groups: groups[0],
            size: [size[0], size[1]],
            kernel: [kernel[0], kernel[1]],
            strides: [steps[0], steps[1]],
            dilations: [steps[2], steps[3]],
            pads: [pads[0], pads[1], pads[2], pads[3]],
        })
        .prop_filter("the kernel fits", |windows| {
            (0..2).all(|axis| {
                let reach = windows.dilations[axis] * (windows.kernel[axis] - 1) + 1;
                windows.size[axis] + windows.pads[axis] + windows.pads[axis + 2] >= reach
            })
        })
}

#[test]
fn convolutions_are_sums_over_windows() {
    common::runner(60)
        .run(&any_windows(), |windows| {
            let inner = windows.channels / windows.groups;
            let count = windows.outputs * inner * windows.kernel[0] * windows.kernel[1];
            let (weights, bias) = (numbers(3, count), numbers(5, windows.outputs));
            let dims = [windows.outputs, inner, windows.kernel[0], windows.kernel[1]].map(|size| size as i64);
            let conv = windows
                .attributes(node("Conv", &["x", "w", "b"], "c"))
                .integer("group", windows.groups as i64);
            let nodes = vec![conv, node("Relu", &["c"], "a")];
            let constants = vec![floats("w", &dims, &weights), floats("b", &[windows.outputs as i64], &bias)];
            let shape = [windows.channels, windows.size[0], windows.size[1]];
            check(&shape, nodes, constants, |x| {
                windows.each(windows.outputs, |output, window| {
                    let group = output / (windows.outputs / windows.groups);
                    let mut sum = f64::from(bias[output]);
                    for channel in 0..inner {
                        for (tap, place) in windows.taps().enumerate() {
                            let weight = weights[(output * inner + channel) * windows.taps().count() + tap];
                            let seen = windows.seen(x, group * inner + channel, window, place);
                            sum += f64::from(weight) * seen.unwrap_or(0.0);
                        }
                    }
                    sum.max(0.0)
                })
            });
            Ok(())
        })
        .unwrap();
}

#[test]
fn pools_take_averages_and_maxima_of_what_they_see() {
    common::runner(60)
        .run(&any_windows(), |mut windows| {
            windows.outputs = windows.channels;
            // A window that sees padding alone has neither.
            let reach = |axis: usize| windows.dilations[axis] * (windows.kernel[axis] - 1);
            prop_assume!((0..2).all(|axis| reach(axis) >= windows.pads[axis].max(windows.pads[axis + 2])));
            prop_assume!((0..2).all(|axis| windows.dilations[axis] == 1 || windows.pads[axis] == 0));
            let shape = [windows.channels, windows.size[0], windows.size[1]];
            let seen = |x: &ArrayD<f64>, channel: usize, window: [usize; 2]| -> Vec<f64> {
                windows.taps().filter_map(|tap| windows.seen(x, channel, window, tap)).collect()
            };
            let whole = (0..2).all(|axis| {
                (0..windows.output(axis)).all(|window| {
                    (0..windows.kernel[axis]).any(|tap| {
                        let place = window * windows.strides[axis] + tap * windows.dilations[axis];
                        (windows.pads[axis]..windows.pads[axis] + windows.size[axis]).contains(&place)
                    })
                })
            });
            prop_assume!(whole);
            let average = windows.attributes(node("AveragePool", &["x"], "a"));
            check(&shape, vec![average.clone()], vec![], |x| {
                windows.each(windows.channels, |channel, window| {
                    let seen = seen(x, channel, window);
                    seen.iter().sum::<f64>() / seen.len() as f64
                })
            });
            check(&shape, vec![average.integer("count_include_pad", 1)], vec![], |x| {
                windows.each(windows.channels, |channel, window| {
                    seen(x, channel, window).iter().sum::<f64>() / windows.taps().count() as f64
                })
            });
            let nodes = vec![node("Relu", &["x"], "r"), windows.attributes(node("MaxPool", &["r"], "a"))];
            let network = check(&shape, nodes, vec![], |x| {
                windows.each(windows.channels, |channel, window| {
                    seen(x, channel, window).into_iter().fold(0.0, f64::max)
                })
            });
            // ReLU after the pool, and only there.
            let found = operations(&network);
            let rectified: Vec<_> = (0..found.len()).filter(|&step| found[step] == "relu").collect();
            prop_assert_eq!(rectified.len(), 1);
            prop_assert!(found[rectified[0]..].iter().all(|&operation| operation != "maximum"));
            Ok(())
        })
        .unwrap();
}

#[test]
fn global_pools_and_means_see_whole_channels() {
    let mean = |x: &ArrayD<f64>| {
        ArrayD::from_shape_fn(IxDyn(&[2, 1, 1]), |index| x.index_axis(Axis(0), index[0]).mean().unwrap())
    };
    let network = check(&[2, 3, 4], vec![node("GlobalAveragePool", &["x"], "a")], vec![], mean);
    // The factor is part of the layer after it.
    assert_eq!(operations(&network), ["sum", "dense"]);
    let reduce = node("ReduceMean", &["x"], "a").integers("axes", &[2, -1]);
    check(&[2, 3, 4], vec![reduce], vec![], mean);
    let largest = |x: &ArrayD<f64>| {
        ArrayD::from_shape_fn(IxDyn(&[2, 1, 1]), |index| {
            x.index_axis(Axis(0), index[0]).iter().copied().fold(f64::MIN, f64::max)
        })
    };
    check(&[2, 3, 4], vec![node("GlobalMaxPool", &["x"], "a")], vec![], largest);
    let sum = vec![node("ReduceSum", &["x", "axes"], "a").integer("keepdims", 0)];
    check(&[2, 3, 4], sum, vec![integers("axes", &[1])], |x| x.sum_axis(Axis(0)));
}

#[test]
fn normalisation_and_scales_become_part_of_the_convolution_before_or_after() {
    let convolution = |input: &str, output: &str, pad: i64| {
        node("Conv", &[input, "w"], output).integers("pads", &[pad; 4]).integers("kernel_shape", &[3, 3])
    };
    let normalise =
        |input: &str, output: &str| node("BatchNormalization", &[input, "s", "t", "m", "v"], output);
    let parameters = || {
        vec![
            floats("w", &[2, 2, 3, 3], &numbers(1, 36)),
            floats("s", &[2], &[0.5, -2.0]),
            floats("t", &[2], &[0.25, 1.0]),
            floats("m", &[2], &[0.5, -0.125]),
            floats("v", &[2], &[0.25, 4.0]),
        ]
    };
    let normal = |x: &ArrayD<f64>| {
        let mut x = x.clone();
        for (mut channel, (s, t, m, v)) in
            x.outer_iter_mut().zip([(0.5, 0.25, 0.5, 0.25_f64), (-2.0, 1.0, -0.125, 4.0)])
        {
            channel.mapv_inplace(|value| (value - m) / (v + 1e-5).sqrt() * s + t);
        }
        x
    };
    let windows = |pad| Windows {
        channels: 2,
        outputs: 2,
        groups: 1,
        size: [4, 5],
        kernel: [3, 3],
        strides: [1, 1],
        dilations: [1, 1],
        pads: [pad; 4],
    };
    let weights = numbers(1, 36);
    let convolved = |x: &ArrayD<f64>, pad| {
        windows(pad).each(2, |output, window| {
            let taps = windows(pad).taps().enumerate().collect::<Vec<_>>();
            let term = |channel: usize, tap: usize, place| {
                let weight = f64::from(weights[(output * 2 + channel) * 9 + tap]);
                weight * windows(pad).seen(x, channel, window, place).unwrap_or(0.0)
            };
            (0..2)
                .map(|channel| taps.iter().map(|&(tap, place)| term(channel, tap, place)).sum::<f64>())
                .sum()
        })
    };
    let relu = |values: ArrayD<f64>| values.mapv_into(|value| value.max(0.0));
    let after = vec![convolution("x", "c", 1), normalise("c", "n"), node("Relu", &["n"], "a")];
    let network = check(&[2, 4, 5], after, parameters(), |x| relu(normal(&convolved(x, 1))));
    assert_eq!(operations(&network), ["convolution", "relu", "dense"]);
    assert_eq!(network.steps()[0].name, "Conv_c");
    let before = vec![normalise("x", "n"), convolution("n", "c", 0), node("Relu", &["c"], "a")];
    let network = check(&[2, 4, 5], before, parameters(), |x| relu(convolved(&normal(x), 0)));
    assert_eq!(operations(&network), ["convolution", "relu", "dense"]);
    // With zeros beside the image the summand cannot pass: it has a step of its own.
    let before = vec![normalise("x", "n"), convolution("n", "c", 1), node("Relu", &["c"], "a")];
    let network = check(&[2, 4, 5], before, parameters(), |x| relu(convolved(&normal(x), 1)));
    assert_eq!(operations(&network), ["convolution", "convolution", "relu", "dense"]);
}

#[test]
fn residual_sums_take_each_value_once() {
    let weights = numbers(11, 36);
    let w = floats("w", &[2, 2, 3, 3], &weights);
    let nodes = vec![
        node("Conv", &["x", "w"], "c").integers("pads", &[1; 4]),
        node("Relu", &["c"], "r"),
        node("Conv", &["r", "w"], "d").integers("pads", &[1; 4]),
        node("Add", &["d", "c"], "s"),
        node("Relu", &["s"], "a"),
    ];
    let windows = Windows {
        channels: 2,
        outputs: 2,
        groups: 1,
        size: [3, 3],
        kernel: [3, 3],
        strides: [1, 1],
        dilations: [1, 1],
        pads: [1; 4],
    };
    let convolved = |x: &ArrayD<f64>| {
        windows.each(2, |output, window| {
            let mut sum = 0.0;
            for channel in 0..2 {
                for (tap, place) in windows.taps().enumerate() {
                    let weight = f64::from(weights[(output * 2 + channel) * 9 + tap]);
                    sum += weight * windows.seen(x, channel, window, place).unwrap_or(0.0);
                }
            }
            sum
        })
    };
    let network = check(&[2, 3, 3], nodes, vec![w], |x| {
        let c = convolved(x);
        (convolved(&c.mapv(|value| value.max(0.0))) + &c).mapv_into(|value| value.max(0.0))
    });
    let expected = ["convolution", "relu", "convolution", "combine", "relu", "dense"];
    assert_eq!(operations(&network), expected);
    assert_eq!(network.steps()[3].inputs, [3, 1]);
}

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
    let bits = choose_fractional_bits([&network], &domain).unwrap();
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

#[test]
fn windows_that_do_not_fit_are_refused_by_their_node() {
    let refused = |nodes: Vec<NodeProto>, dims: &[i64]| {
        let count = dims.iter().product::<i64>() as usize;
        let (more, weights) = head("a", 4);
        let constants = [weights, vec![floats("w", dims, &numbers(1, count))]].concat();
        network(&[2, 4, 4], [nodes, more].concat(), constants).err().expect("must be refused").to_string()
    };
    let conv = || node("Conv", &["x", "w"], "a");
    assert!(refused(vec![conv()], &[2, 3, 3, 3]).contains("a kernel for 2 channels in 1 groups"));
    assert!(refused(vec![conv()], &[2, 2, 5, 5]).contains("number of windows along an axis is 0"));
    assert!(refused(vec![conv().integer("group", 0)], &[2, 2, 3, 3]).contains("Conv_a"));
    assert!(refused(vec![conv().integer("group", 3)], &[3, 2, 3, 3]).contains("in 3 groups"));
    assert!(refused(vec![conv().integers("strides", &[0, 1])], &[2, 2, 3, 3]).contains("strides [0, 1]"));
    assert!(refused(vec![conv().integers("strides", &[1])], &[2, 2, 3, 3]).contains("strides"));
    assert!(
        refused(vec![conv().integers("pads", &[-1, 0, 0, 0])], &[2, 2, 3, 3]).contains("pads of 0 or more")
    );
    assert!(refused(vec![conv().integers("pads", &[i64::MAX; 4])], &[2, 2, 3, 3]).contains("Conv_a"));
    assert!(refused(vec![conv().integers("dilations", &[1 << 40, 1])], &[2, 2, 3, 3]).contains("dilations"));
    assert!(refused(vec![node("MaxPool", &["x"], "a")], &[1]).contains("kernel_shape is missing"));
    let far = node("MaxPool", &["x"], "a").integers("kernel_shape", &[1, 1]).integers("pads", &[2; 4]);
    assert!(refused(vec![far], &[1]).contains("padding alone"));
}
