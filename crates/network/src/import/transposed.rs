//! Transposed convolutions, as ordinary ones.
//!
//! A transposed convolution is the convolution of the image with zeros between its numbers, windows one apart, with
//! the kernel turned round (Dumoulin and Visin, A guide to convolution arithmetic, section 4). The zeros are put in
//! without messages; multiplying by them is work that the servers do in vain, as many times as the strides say.

use ndarray::{Array1, Array3, Ix1};

use super::{
    node::Node,
    value::{Failure, Value, mismatch, unsupported},
    windows::{Kernel, activation, image, kernel, pair, result_shape},
};
use crate::{
    erase::Erasing,
    limits::MAXIMUM_SIZE,
    program::{Affine, Convolution},
};

/// `ConvTranspose`.
pub(super) fn transposed_convolution(node: &mut Node<'_>) -> Result<Value, Failure> {
    let activation = activation(node)?;
    let Kernel { weights, groups, size: kernel } =
        kernel(node, &activation, |shape, channels, _| shape[0] == channels)?;
    let (channels, size) = image(&activation)?;
    let axes = activation.shape.len() - 1;
    let (strides, dilations) = (pair(node, "strides", axes)?, pair(node, "dilations", axes)?);
    let numbers = [strides, dilations, kernel].concat();
    if numbers.iter().any(|&number| !(1..=MAXIMUM_SIZE).contains(&number)) {
        let found = format!("kernel {kernel:?}, strides {strides:?}, dilations {dilations:?}");
        return mismatch(node.name, "kernel, strides and dilations of 1 or more", found);
    }
    let reach = [0, 1].map(|axis| (dilations[axis] * (kernel[axis] - 1)) as i64);
    // The image with zeros between its numbers.
    let spread = [0, 1].map(|axis| (size[axis] - 1).saturating_mul(strides[axis]).saturating_add(1));
    if spread.iter().any(|&length| length > MAXIMUM_SIZE) {
        return mismatch(
            node.name,
            format!("at most {MAXIMUM_SIZE} numbers along an axis"),
            format!("{spread:?}"),
        );
    }
    let cut =
        cut(node, axes, [0, 1].map(|axis| (spread[axis] as i64, reach[axis], size[axis] * strides[axis])))?;
    // Beside the image stand as many zeros as the kernel reaches, less what is cut off; less than none is cut off
    // the image itself.
    let beside = [0, 1, 2, 3].map(|end| reach[end % 2] - cut[end]);
    let pads = beside.map(|zeros| usize::try_from(zeros).unwrap_or(0));
    let removed = beside.map(|zeros| usize::try_from(-zeros).unwrap_or(0));
    let whole =
        [0, 1].map(|axis| spread[axis].saturating_sub(removed[axis]).saturating_sub(removed[axis + 2]));
    let outputs = weights.shape()[1].saturating_mul(groups);
    let convolution = Convolution {
        channels: [channels, outputs],
        groups,
        size: whole,
        kernel,
        strides: [1; 2],
        dilations,
        pads,
    };
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
    let along = |axis: usize, place: usize| {
        let place = place + removed[axis];
        place.is_multiple_of(strides[axis]).then(|| place / strides[axis])
    };
    let [height, width] = whole;
    node.budget.charge(channels.saturating_mul(height * width), node.name)?;
    let places: Vec<Option<usize>> = (0..channels * height * width)
        .map(|index| {
            let (channel, row, column) = (index / (height * width), index / width % height, index % width);
            Some((channel * size[0] + along(0, row)?) * size[1] + along(1, column)?)
        })
        .collect();
    let spread =
        node.builder.gathered(&activation, vec![channels, height, width], &places, node.budget, node.name)?;
    let affine = Affine::convolution(convolution);
    node.budget.charge(weights.len(), node.name)?;
    // [channels, outputs of the group, ...] in the file, [groups, inner, outputs of the group] here.
    let kernels = weights.as_standard_layout();
    let kernels = kernels.as_slice().expect("the layout was made standard");
    let taps = kernel[0] * kernel[1];
    let matrices = Array3::from_shape_fn((groups, affine.inner, affine.outer), |(group, row, column)| {
        let channel = group * (channels / groups) + row / taps;
        kernels[(channel * affine.outer + column) * taps + (taps - 1 - row % taps)]
    });
    let shape = result_shape(&activation, outputs, &convolution);
    let kernel = (Erasing::new(matrices), bias);
    let result = node.builder.convolved(&spread, convolution, kernel, shape, node.budget, node.name)?;
    Ok(Value::Activation(result))
}

/// Numbers cut off the full result at the top, left, bottom and right; fewer than none where more are wanted. For
/// each axis the length of the image with zeros between, how far the kernel reaches, and the size that `SAME` keeps.
fn cut(node: &Node<'_>, axes: usize, lengths: [(i64, i64, usize); 2]) -> Result<[i64; 4], Failure> {
    let both = |name: &str, default: i64| -> Result<[i64; 2], Failure> {
        match node.integers_attribute(name).as_deref() {
            None => Ok([default; 2]),
            Some(&[width]) if axes == 1 && width >= 0 => Ok([default, width]),
            Some(&[height, width]) if axes == 2 && height.min(width) >= 0 => Ok([height, width]),
            Some(other) => {
                mismatch(node.name, format!("{axes} numbers of 0 or more as {name}"), format!("{other:?}"))
            }
        }
    };
    let limited = |numbers: [i64; 2]| numbers.map(|number| number.min(MAXIMUM_SIZE as i64));
    let added = limited(both("output_padding", 0)?);
    let same = node.text_attribute("auto_pad");
    let wanted = match (node.integers_attribute("output_shape"), same.as_str()) {
        // Some writers give the batch and the channels as well.
        (Some(shape), _) if shape.len() >= axes => {
            let last = &shape[shape.len() - axes..];
            Some(limited([if axes == 1 { 1 } else { last[0] }, last[axes - 1]]))
        }
        (Some(shape), _) => {
            return mismatch(node.name, format!("{axes} numbers as output_shape"), format!("{shape:?}"));
        }
        (None, "SAME_UPPER" | "SAME_LOWER") => Some(lengths.map(|(_, _, kept)| kept as i64)),
        (None, "" | "NOTSET" | "VALID") => None,
        (None, other) => return mismatch(node.name, "a known auto_pad", other.to_owned()),
    };
    let mut cut = [0; 4];
    match wanted {
        Some(wanted) => {
            for axis in [0, 1] {
                let total = lengths[axis].0 + lengths[axis].1 + added[axis] - wanted[axis];
                if total < 0 {
                    return unsupported(
                        "output_shape or auto_pad asks for more than the windows give; use output_padding",
                    );
                }
                let less = total / 2;
                let before = if same == "SAME_UPPER" { less } else { total - less };
                (cut[axis], cut[axis + 2]) = (before, total - before);
            }
        }
        None if same != "VALID" => {
            let pads = node.integers_attribute("pads").unwrap_or_else(|| vec![0; 2 * axes]);
            cut = match pads[..] {
                [left, right] if axes == 1 => [0, left, 0, right],
                [top, left, bottom, right] => [top, left, bottom, right],
                _ => return mismatch(node.name, format!("{} pads", 2 * axes), format!("{pads:?}")),
            };
            if cut.iter().any(|pad| !(0..=MAXIMUM_SIZE as i64).contains(pad)) {
                return mismatch(node.name, "pads of 0 or more", format!("{pads:?}"));
            }
        }
        None => {}
    }
    for axis in [0, 1] {
        cut[axis + 2] -= added[axis];
    }
    Ok(cut)
}
