//! Convolution and pooling.

use std::rc::Rc;

use ndarray::{Array1, Array3, Ix1, IxDyn};

use super::{
    activation::Activation,
    node::Node,
    value::{Failure, Value, list, mismatch, unsupported},
};
use crate::{
    erase::Erasing,
    program::{Affine, Convolution, Operation},
};

/// The numbers of an attribute along the height and the width, 1 where the node gives none.
pub(super) fn pair(node: &Node<'_>, name: &str, axes: usize) -> Result<[usize; 2], Failure> {
    let values = match node.integers_attribute(name) {
        Some(values) => values,
        None => return Ok([1; 2]),
    };
    let known: Option<Vec<usize>> = values.iter().map(|&value| usize::try_from(value).ok()).collect();
    match known.as_deref() {
        Some([width]) if axes == 1 => Ok([1, *width]),
        Some([height, width]) if axes == 2 => Ok([*height, *width]),
        _ => mismatch(node.name, format!("{axes} numbers of 0 or more as {name}"), format!("{values:?}")),
    }
}

/// Channels, height and width of `[channels, height, width]` or `[channels, width]`.
pub(super) fn image(activation: &Activation) -> Result<(usize, [usize; 2]), Failure> {
    match activation.shape[..] {
        [channels, width] => Ok((channels, [1, width])),
        [channels, height, width] => Ok((channels, [height, width])),
        _ => unsupported(format!(
            "only images [channels, height, width] and rows [channels, width] are supported, not [{}]",
            list(&activation.shape)
        )),
    }
}

/// The windows of a node with one channel for each group, and the pads at the end that a rounded-up
/// size adds.
fn windows(
    node: &Node<'_>,
    activation: &Activation,
    kernel: [usize; 2],
) -> Result<(Convolution, [usize; 2]), Failure> {
    let (channels, size) = image(activation)?;
    let axes = activation.shape.len() - 1;
    let strides = pair(node, "strides", axes)?;
    let dilations = pair(node, "dilations", axes)?;
    let mut convolution = Convolution {
        channels: [channels; 2],
        groups: channels,
        size,
        kernel,
        strides,
        dilations,
        pads: [0; 4],
    };
    let numbers = [strides, dilations, kernel].concat();
    if numbers.iter().any(|&number| number == 0 || number > crate::limits::MAXIMUM_SIZE) {
        let found = format!("kernel {kernel:?}, strides {strides:?}, dilations {dilations:?}");
        return mismatch(node.name, "kernel, strides and dilations of 1 or more", found);
    }
    let reach = [0, 1].map(|axis| dilations[axis] * (kernel[axis] - 1) + 1);
    match node.text_attribute("auto_pad").as_str() {
        "" | "NOTSET" => {
            let pads = node.integers_attribute("pads").unwrap_or_else(|| vec![0; 2 * axes]);
            let known: Option<Vec<usize>> = pads.iter().map(|&pad| usize::try_from(pad).ok()).collect();
            convolution.pads = match known.as_deref() {
                Some([left, right]) if axes == 1 => [0, *left, 0, *right],
                Some([top, left, bottom, right]) => [*top, *left, *bottom, *right],
                _ => {
                    return mismatch(
                        node.name,
                        format!("{} pads of 0 or more", 2 * axes),
                        format!("{pads:?}"),
                    );
                }
            };
        }
        "VALID" => {}
        same @ ("SAME_UPPER" | "SAME_LOWER") => {
            for axis in [0, 1] {
                let last = (size[axis].div_ceil(strides[axis]) - 1) * strides[axis];
                let total = (last + reach[axis]).saturating_sub(size[axis]);
                let before = if same == "SAME_UPPER" { total / 2 } else { total.div_ceil(2) };
                (convolution.pads[axis], convolution.pads[axis + 2]) = (before, total - before);
            }
        }
        other => return mismatch(node.name, "a known auto_pad", other.to_owned()),
    }
    let mut added = [0; 2];
    if node.integer_attribute("ceil_mode", 0) != 0 {
        for axis in [0, 1] {
            let padded =
                size[axis].saturating_add(convolution.pads[axis]).saturating_add(convolution.pads[axis + 2]);
            let rest = padded.saturating_sub(reach[axis]) % strides[axis];
            // A window that would begin in the padding after the image does not count.
            let begin =
                (padded.saturating_sub(reach[axis]) / strides[axis] + 1).saturating_mul(strides[axis]);
            if rest > 0 && begin < size[axis] + convolution.pads[axis] {
                added[axis] = strides[axis] - rest;
                convolution.pads[axis + 2] += added[axis];
            }
        }
    }
    match convolution.check(0) {
        Ok(()) => Ok((convolution, added)),
        Err(error) => mismatch(node.name, "windows that fit the image", error.to_string()),
    }
}

/// The shape of a result of `channels` channels, with as many dimensions as the value before.
pub(super) fn result_shape(
    activation: &Activation,
    channels: usize,
    convolution: &Convolution,
) -> Vec<usize> {
    let [height, width] = convolution.output_size();
    if activation.shape.len() == 2 { vec![channels, width] } else { vec![channels, height, width] }
}

pub(super) fn activation(node: &Node<'_>) -> Result<Activation, Failure> {
    match node.input(0)? {
        Value::Activation(activation) => Ok(activation),
        _ => unsupported("only values that depend on the input have windows"),
    }
}

/// The constant kernel of a node, `[_, _, width]` or `[_, _, height, width]`.
pub(super) struct Kernel {
    pub(super) weights: Rc<Erasing<IxDyn>>,
    pub(super) groups: usize,
    /// Height and width.
    pub(super) size: [usize; 2],
}

/// The kernel of a node on `activation`. `fits(shape, channels, groups)` says whether its first two
/// dimensions fit; there is at least one group, and the channels divide into them.
pub(super) fn kernel(
    node: &Node<'_>,
    activation: &Activation,
    fits: impl FnOnce(&[usize], usize, usize) -> bool,
) -> Result<Kernel, Failure> {
    let weights = match node.input(1)? {
        Value::Float(weights) => weights,
        _ => return unsupported("the kernel must be constant"),
    };
    let (channels, _) = image(activation)?;
    let groups = usize::try_from(node.integer_attribute("group", 1)).unwrap_or(0);
    let axes = activation.shape.len() - 1;
    let fits = weights.ndim() == axes + 2
        && !weights.is_empty()
        && groups > 0
        && channels.is_multiple_of(groups)
        && fits(weights.shape(), channels, groups);
    if !fits {
        let expected = format!("a kernel for {channels} channels in {groups} groups, {axes} dimensions");
        return mismatch(node.name, expected, format!("shape {:?}", weights.shape()));
    }
    let size = match weights.shape()[2..] {
        [width] => [1, width],
        [height, width] => [height, width],
        _ => return mismatch(node.name, "a kernel of one or two dimensions", list(weights.shape())),
    };
    Ok(Kernel { weights, groups, size })
}

/// `Conv`.
pub(super) fn convolution(node: &mut Node<'_>) -> Result<Value, Failure> {
    let activation = activation(node)?;
    let Kernel { weights, groups, size } = kernel(node, &activation, |shape, channels, groups| {
        shape[0].is_multiple_of(groups) && shape[1] == channels / groups
    })?;
    let (mut convolution, _) = windows(node, &activation, size)?;
    let outputs = weights.shape()[0];
    convolution.channels[1] = outputs;
    convolution.groups = groups;
    if let Err(error) = convolution.check(0) {
        return mismatch(node.name, "a convolution within the limits", error.to_string());
    }
    let bias: Erasing<Ix1> = Erasing::new(match node.optional(2) {
        None => Array1::zeros(outputs),
        Some(Value::Float(bias)) if bias.shape() == [outputs] => bias.iter().copied().collect(),
        Some(other) => {
            return mismatch(node.name, format!("a bias of {outputs} values"), other.description());
        }
    });
    let affine = Affine::convolution(convolution);
    node.budget.charge(weights.len(), node.name)?;
    // [outputs, ...] in the file, [groups, inner, outputs of the group] here.
    let kernels = weights.as_standard_layout();
    let kernels = kernels.as_slice().expect("the layout was made standard");
    let matrices = Array3::from_shape_fn((groups, affine.inner, affine.outer), |(group, row, column)| {
        kernels[(group * affine.outer + column) * affine.inner + row]
    });
    let shape = result_shape(&activation, outputs, &convolution);
    let kernel = (Erasing::new(matrices), bias);
    let result = node.builder.convolved(&activation, convolution, kernel, shape, node.budget, node.name)?;
    Ok(Value::Activation(result))
}

/// The kernel of a pooling node, or the whole image for a global one.
fn pool_kernel(node: &Node<'_>, activation: &Activation, global: bool) -> Result<[usize; 2], Failure> {
    let (_, size) = image(activation)?;
    if global {
        return Ok(size);
    }
    if node.integers_attribute("kernel_shape").is_none() {
        return Err(node.broken("kernel_shape is missing").into());
    }
    pair(node, "kernel_shape", activation.shape.len() - 1)
}

/// `AveragePool` and `GlobalAveragePool`.
pub(super) fn average_pool(node: &mut Node<'_>, global: bool) -> Result<Value, Failure> {
    let activation = activation(node)?;
    let kernel = pool_kernel(node, &activation, global)?;
    let (convolution, added) = windows(node, &activation, kernel)?;
    // Zeros beside the image count if the node says so, those of a rounded-up size never.
    let include = node.integer_attribute("count_include_pad", 0) != 0;
    let counted = |axis: usize, window: usize| {
        let limit =
            convolution.size[axis] + convolution.pads[axis] + convolution.pads[axis + 2] - added[axis];
        let (start, stop) = if include {
            (0, limit)
        } else {
            (convolution.pads[axis], convolution.pads[axis] + convolution.size[axis])
        };
        first_tap(&convolution, axis, window, stop) - first_tap(&convolution, axis, window, start)
    };
    let [height, width] = convolution.output_size();
    let counts: Vec<usize> =
        (0..height * width).map(|window| counted(0, window / width) * counted(1, window % width)).collect();
    if counts.contains(&0) {
        return mismatch(node.name, "windows that see the image", "one that sees padding alone");
    }
    let shape = result_shape(&activation, convolution.channels[0], &convolution);
    average(node, activation, convolution, &counts, shape)
}

/// The first element of a window along an axis at `place`, which counts the padding, or behind it; the
/// length of the window when there is none.
fn first_tap(convolution: &Convolution, axis: usize, window: usize, place: usize) -> usize {
    let begin = window * convolution.strides[axis];
    place.saturating_sub(begin).div_ceil(convolution.dilations[axis]).min(convolution.kernel[axis])
}

/// Sums of windows, divided by as many numbers as each position counts.
pub(super) fn average(
    node: &mut Node<'_>,
    mut activation: Activation,
    windows: Convolution,
    counts: &[usize],
    shape: Vec<usize>,
) -> Result<Value, Failure> {
    let factors = |channels: usize| -> Array1<f64> {
        (0..channels).flat_map(|_| counts.iter().map(|&count| 1.0 / count as f64)).collect()
    };
    let single = counts.iter().all(|&count| count == 1);
    // The factor becomes part of the product before, if there is one, and of the next otherwise.
    let early = !single && activation.is_pending() && counts.iter().all(|&count| count == counts[0]);
    if early {
        let ones = Array1::from_elem(activation.features(), 1.0 / counts[0] as f64);
        let zeros = Array1::zeros(ones.len());
        activation = activation.scaled(node.builder, &ones, &zeros, node.budget, node.name)?;
    }
    let sums = node.builder.window_sums(&activation, windows, shape, node.budget, node.name)?;
    if early || single {
        return Ok(Value::Activation(sums));
    }
    let scale = factors(windows.channels[0]);
    let zeros = Array1::zeros(scale.len());
    Ok(Value::Activation(sums.scaled(node.builder, &scale, &zeros, node.budget, node.name)?))
}

/// `MaxPool` and `GlobalMaxPool`: along the width, then along the height, neighbours first.
pub(super) fn max_pool(node: &mut Node<'_>, global: bool) -> Result<Value, Failure> {
    let activation = activation(node)?;
    let kernel = pool_kernel(node, &activation, global)?;
    let (convolution, _) = windows(node, &activation, kernel)?;
    let channels = convolution.channels[0];
    let [height, width] = convolution.output_size();
    // The largest of rectified numbers is the rectified largest, which takes fewer comparisons.
    let before = node.builder.before_relu(&activation);
    let mut value = before.clone().unwrap_or_else(|| activation.clone());
    let mut size = convolution.size;
    for (axis, windows) in [(1, width), (0, height)] {
        let mut result = size;
        result[axis] = windows;
        let mut taps = Vec::with_capacity(kernel[axis]);
        for tap in 0..kernel[axis] {
            let Some(places) = seen(&convolution, axis, windows, tap) else {
                return mismatch(node.name, "windows that see the image", "one that sees padding alone");
            };
            let place = |index: usize| {
                let (channel, row, column) =
                    (index / (result[0] * result[1]), index / result[1] % result[0], index % result[1]);
                let [row, column] = if axis == 0 { [places[row], column] } else { [row, places[column]] };
                Some((channel * size[0] + row) * size[1] + column)
            };
            let all: Vec<_> = (0..channels * result[0] * result[1]).map(place).collect();
            let shape = vec![channels, result[0], result[1]];
            taps.push(node.builder.gathered(&value, shape, &all, node.budget, node.name)?);
        }
        while taps.len() > 1 {
            let pairs = taps.chunks(2).map(|pair| match pair {
                [left, right] => {
                    node.builder.pairwise(Operation::Maximum, [left, right], node.budget, node.name)
                }
                rest => Ok(rest[0].clone()),
            });
            taps = pairs.collect::<Result<_, _>>()?;
        }
        value = taps.swap_remove(0);
        size = result;
    }
    let mut value = value.reshaped(result_shape(&activation, channels, &convolution));
    if before.is_some() {
        value = node.builder.relu(&value, node.budget, node.name)?;
    }
    Ok(Value::Activation(value))
}

/// For each window along an axis, the place that its element `tap` sees; beside the image, that of
/// another element of the window, which changes no maximum. `None` when a window has no other.
fn seen(convolution: &Convolution, axis: usize, windows: usize, tap: usize) -> Option<Vec<usize>> {
    let place = |window: usize, tap: usize| {
        let place = window * convolution.strides[axis] + tap * convolution.dilations[axis];
        place.checked_sub(convolution.pads[axis]).filter(|&place| place < convolution.size[axis])
    };
    (0..windows)
        .map(|window| {
            place(window, tap).or_else(|| {
                let first = first_tap(convolution, axis, window, convolution.pads[axis]);
                place(window, first).filter(|_| first < convolution.kernel[axis])
            })
        })
        .collect()
}
