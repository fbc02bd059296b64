//! Convolutions and pooling: import against arithmetic written out here, and fixed point within its proven
//! bounds.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{
    WithAttributes, floats,
    graphs::{check, head, network, numbers, operations},
    integers, node,
};
use concilium_network::{Network, onnx::NodeProto};
use ndarray::{ArrayD, Axis, IxDyn};
use proptest::{collection::vec, prelude::*};

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

/// What a transposed convolution adds up, number by number of the value, before anything is cut off.
fn spread(x: &ArrayD<f64>, weights: &ArrayD<f64>, windows: &Windows) -> ArrayD<f64> {
    let full = [0, 1].map(|axis| {
        (windows.size[axis] - 1) * windows.strides[axis]
            + (windows.kernel[axis] - 1) * windows.dilations[axis]
            + 1
    });
    let mut sums = ArrayD::zeros(IxDyn(&[windows.outputs, full[0], full[1]]));
    let (ins, outs) = (windows.channels / windows.groups, windows.outputs / windows.groups);
    for (index, value) in x.indexed_iter() {
        for output in 0..outs {
            for row in 0..windows.kernel[0] {
                for column in 0..windows.kernel[1] {
                    let place = [
                        index[0] / ins * outs + output,
                        index[1] * windows.strides[0] + row * windows.dilations[0],
                        index[2] * windows.strides[1] + column * windows.dilations[1],
                    ];
                    sums[IxDyn(&place)] += value * weights[IxDyn(&[index[0], output, row, column])];
                }
            }
        }
    }
    sums
}

#[test]
fn transposed_convolutions_spread_each_number() {
    let mut runner = common::runner(40);
    let cases = (any_windows(), [0_usize..2, 0..2]);
    let result = runner.run(&cases, |(windows, added)| {
        let full = [0, 1].map(|axis| {
            (windows.size[axis] - 1) * windows.strides[axis]
                + (windows.kernel[axis] - 1) * windows.dilations[axis]
                + 1
        });
        let left = [0, 1].map(|axis| {
            (full[axis] + added[axis]).saturating_sub(windows.pads[axis] + windows.pads[axis + 2])
        });
        prop_assume!(left.iter().all(|&size| size > 0));
        let shape =
            [windows.channels, windows.outputs / windows.groups, windows.kernel[0], windows.kernel[1]];
        let values = numbers(11, shape.iter().product());
        let weights =
            ArrayD::from_shape_vec(IxDyn(&shape), values.iter().map(|&v| f64::from(v)).collect()).unwrap();
        let bias = numbers(13, windows.outputs);
        let list = |numbers: &[usize]| numbers.iter().map(|&number| number as i64).collect::<Vec<_>>();
        let transposed = node("ConvTranspose", &["x", "w", "b"], "a")
            .integers("strides", &list(&windows.strides))
            .integers("dilations", &list(&windows.dilations))
            .integers("pads", &list(&windows.pads))
            .integers("output_padding", &list(&added))
            .integer("group", windows.groups as i64);
        let constants =
            vec![floats("w", &list(&shape), &values), floats("b", &[windows.outputs as i64], &bias)];
        let sizes = [windows.channels, windows.size[0], windows.size[1]];
        check(&sizes, vec![transposed], constants, |x| {
            let sums = spread(x, &weights, &windows);
            ArrayD::from_shape_fn(IxDyn(&[windows.outputs, left[0], left[1]]), |index| {
                let place = [index[0], index[1] + windows.pads[0], index[2] + windows.pads[1]];
                sums.get(IxDyn(&place)).copied().unwrap_or(0.0) + f64::from(bias[index[0]])
            })
        });
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    // Sizes that are asked for, and one that no window reaches.
    let shape_of = |attribute: &str, values: &[i64], auto_pad: &str| {
        let transposed =
            node("ConvTranspose", &["x", "w"], "a").integers("strides", &[2]).text("auto_pad", auto_pad);
        let transposed =
            if attribute.is_empty() { transposed } else { transposed.integers(attribute, values) };
        let nodes = vec![transposed, node("Squeeze", &["a", "one"], "y")];
        network(&[1, 4], nodes, vec![floats("w", &[1, 1, 3], &[1.0, 2.0, 3.0]), integers("one", &[1])])
    };
    let row = ndarray::array![[1.0, 10.0, 100.0, 1000.0]];
    let found = |network: Network| network.evaluate(row.view()).into_iter().collect::<Vec<f64>>();
    let full = [1.0, 2.0, 13.0, 20.0, 130.0, 200.0, 1300.0, 2000.0, 3000.0];
    assert_eq!(found(shape_of("", &[], "NOTSET").unwrap()), full);
    assert_eq!(found(shape_of("output_shape", &[8], "SAME_UPPER").unwrap()), full[..8]);
    assert_eq!(found(shape_of("output_shape", &[8], "NOTSET").unwrap()), full[1..]);
    assert_eq!(found(shape_of("", &[], "SAME_UPPER").unwrap()), full[..8]);
    assert_eq!(found(shape_of("", &[], "VALID").unwrap()), full);
    let text = shape_of("output_shape", &[12], "NOTSET").err().unwrap().to_string();
    assert!(text.contains("ConvTranspose_a") && text.contains("use output_padding"), "{text}");
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
