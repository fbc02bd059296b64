//! Operators that move the numbers of values that depend on the input.
//!
//! Where a number comes from is found by applying the operator to a constant whose elements are their
//! own positions: one sample, the batch as a first dimension of one.

use ndarray::{ArrayD, IxDyn};

use super::{
    activation::{Activation, check_size},
    constant::{self, Range},
    node::Node,
    value::{Failure, Integer, Value, list, mismatch, normalise_axis, unsupported},
};
use crate::program::Piece;

/// Said of operators that touch the first dimension.
const BATCH: &str = "works on the batch; only dimensions of a sample can be moved";

/// The positions of the numbers of one sample, `[1, shape...]`.
fn positions(shape: &[usize]) -> ArrayD<Integer> {
    let mut full = vec![1];
    full.extend(shape);
    let count = shape.iter().product::<usize>();
    let elements = (0..count as i64).map(Integer::Known).collect();
    ArrayD::from_shape_vec(IxDyn(&full), elements).expect("there is an element for each position")
}

/// The activation whose numbers stand where `moved` says.
fn taken(node: &mut Node<'_>, activation: &Activation, moved: &Value) -> Result<Value, Failure> {
    let Value::Integer(moved) = moved else { return unsupported(BATCH) };
    let Some((&1, shape)) = moved.shape().split_first() else { return unsupported(BATCH) };
    let places: Vec<Option<usize>> = moved
        .iter()
        .map(|place| match place {
            Integer::Known(place) => usize::try_from(*place).ok(),
            Integer::Batch => None,
        })
        .collect();
    if places.is_empty() {
        return mismatch(node.name, "a value with numbers", format!("shape [{}]", list(shape)));
    }
    let shape = shape.to_vec();
    Ok(Value::Activation(node.builder.gathered(activation, shape, &places, node.budget, node.name)?))
}

/// Where the numbers of a sample of `shape` come from when its axes are put in the order `order`.
pub(super) fn permuted(shape: &[usize], order: &[usize]) -> Vec<Option<usize>> {
    let places = ArrayD::from_shape_vec(IxDyn(shape), (0..shape.iter().product()).collect())
        .expect("there is an element for each position");
    places.view().permuted_axes(IxDyn(order)).iter().map(|&place: &usize| Some(place)).collect()
}

/// `Transpose`.
pub(super) fn transpose(node: &mut Node<'_>) -> Result<Value, Failure> {
    let permutation = node.integers_attribute("perm");
    match node.input(0)? {
        Value::Activation(activation) => {
            if permutation.as_ref().and_then(|axes| axes.first()) != Some(&0) {
                return unsupported(BATCH);
            }
            node.budget.charge(activation.features(), node.name)?;
            let places = Value::integer(positions(&activation.shape));
            let moved = constant::transpose(&places, permutation.as_deref(), node.name, node.budget)?;
            taken(node, &activation, &moved)
        }
        value => constant::transpose(&value, permutation.as_deref(), node.name, node.budget),
    }
}

/// `Slice` of an activation.
pub(super) fn slice(
    node: &mut Node<'_>,
    activation: &Activation,
    ranges: &[Range],
) -> Result<Value, Failure> {
    for range in ranges {
        let whole = range.start == 0 && range.end >= i64::from(i32::MAX) && range.step == 1;
        if normalise_axis(range.axis, activation.shape.len() + 1, node.name)? == 0 && !whole {
            return unsupported(BATCH);
        }
    }
    node.budget.charge(activation.features(), node.name)?;
    let places = Value::integer(positions(&activation.shape));
    let moved = constant::slice(&places, ranges, node.name, node.budget)?;
    taken(node, activation, &moved)
}

/// `Split`: the parts along an axis, one for each output.
pub(super) fn split(node: &mut Node<'_>) -> Result<Vec<Value>, Failure> {
    let Value::Activation(activation) = node.input(0)? else {
        return unsupported("only values that depend on the input are split");
    };
    let axis = normalise_axis(node.integer_attribute("axis", 0), activation.shape.len() + 1, node.name)?;
    let Some(size) = axis.checked_sub(1).map(|position| activation.shape[position]) else {
        return unsupported(BATCH);
    };
    // The sizes are a parameter before operator set 13, then an input; without them the parts are equal, the
    // last one smaller.
    let count = node.proto.output.len();
    let sizes = match node.integers_attribute("split") {
        Some(sizes) => sizes,
        None if node.optional(1).is_some() => node.integers(1)?,
        None => {
            let most = size.div_ceil(count.max(1));
            (0..count).map(|part| size.saturating_sub(part * most).min(most) as i64).collect()
        }
    };
    let whole =
        sizes.iter().try_fold(0_i64, |sum, &part| (part > 0).then(|| sum.checked_add(part)).flatten());
    if sizes.len() != count || whole != i64::try_from(size).ok() {
        return mismatch(node.name, format!("{count} parts of {size} numbers in all"), format!("{sizes:?}"));
    }
    let mut start = 0;
    let mut parts = Vec::with_capacity(count);
    for part in sizes {
        let range = Range { axis: axis as i64, start, end: start + part, step: 1 };
        parts.push(slice(node, &activation, &[range])?);
        start += part;
    }
    Ok(parts)
}

/// `Gather` with constant indices.
pub(super) fn gather(node: &mut Node<'_>) -> Result<Value, Failure> {
    let indices = match node.input(1)? {
        Value::Integer(indices) => indices,
        _ => return unsupported("indices must be constant"),
    };
    let axis = node.integer_attribute("axis", 0);
    match node.input(0)? {
        Value::Activation(activation) => {
            if normalise_axis(axis, activation.shape.len() + 1, node.name)? == 0 {
                return unsupported(BATCH);
            }
            node.budget.charge(activation.features(), node.name)?;
            let places = Value::integer(positions(&activation.shape));
            let moved = constant::gather(&places, &indices, axis, node.name, node.budget)?;
            taken(node, &activation, &moved)
        }
        value => constant::gather(&value, &indices, axis, node.name, node.budget),
    }
}

/// `Expand`, and the repetition that elementwise operators imply.
pub(super) fn expand(
    node: &mut Node<'_>,
    activation: &Activation,
    shape: &[usize],
) -> Result<Activation, Failure> {
    if activation.shape == shape {
        return Ok(activation.clone());
    }
    let mut full = vec![1];
    full.extend(shape);
    let count = constant::extent(&full);
    check_size(count)?;
    node.budget.charge(count, node.name)?;
    let places = positions(&activation.shape);
    let Some(repeated) = places.broadcast(IxDyn(&full)) else {
        let found = format!("[{}]", list(&activation.shape));
        return mismatch(node.name, format!("a value that broadcasts to [{}]", list(shape)), found);
    };
    let moved = Value::integer(repeated.to_owned());
    match taken(node, activation, &moved)? {
        Value::Activation(activation) => Ok(activation),
        _ => unsupported(BATCH),
    }
}

/// Two activations in the shape that both broadcast to.
pub(super) fn together(
    node: &mut Node<'_>,
    left: &Activation,
    right: &Activation,
) -> Result<[Activation; 2], Failure> {
    if left.shape.len() != right.shape.len() {
        return unsupported(format!(
            "combines values of {} and {} dimensions, so that samples would meet",
            left.shape.len() + 1,
            right.shape.len() + 1
        ));
    }
    let Some(shape) = constant::common_shape(&left.shape, &right.shape) else {
        let found = format!("[{}] and [{}]", list(&left.shape), list(&right.shape));
        return mismatch(node.name, "shapes that broadcast", found);
    };
    Ok([expand(node, left, &shape)?, expand(node, right, &shape)?])
}

/// `Concat` of activations.
pub(super) fn concatenate(node: &mut Node<'_>, parts: &[Activation], axis: i64) -> Result<Value, Failure> {
    let shape = &parts[0].shape;
    let Some(axis) = normalise_axis(axis, shape.len() + 1, node.name)?.checked_sub(1) else {
        return unsupported(BATCH);
    };
    let fits = |part: &Activation| {
        part.shape.len() == shape.len()
            && (0..shape.len()).all(|other| other == axis || part.shape[other] == shape[other])
    };
    if !parts.iter().all(fits) {
        let shapes: Vec<_> = parts.iter().map(|part| &part.shape).collect();
        return mismatch(
            node.name,
            format!("shapes that differ only in axis {}", axis + 1),
            format!("{shapes:?}"),
        );
    }
    // Each part with the axis in front, one after the other; then the axis back to its place.
    let rank = shape.len();
    let front: Vec<usize> = std::iter::once(axis).chain((0..rank).filter(|&other| other != axis)).collect();
    let mut pieces = Vec::with_capacity(parts.len());
    let mut length = 0;
    for (value, part) in parts.iter().enumerate() {
        node.budget.charge(part.features(), node.name)?;
        length += part.shape[axis];
        let moved: Vec<usize> = front.iter().map(|&axis| part.shape[axis]).collect();
        let piece = Piece::of_places(&moved, &permuted(&part.shape, &front));
        let piece = piece.expect("a transposition adds up along its axes");
        pieces.push(Piece { value, ..piece });
    }
    let mut joined: Vec<usize> = front.iter().map(|&axis| shape[axis]).collect();
    joined[0] = length;
    let value = node.builder.joined(parts, pieces, joined.clone(), node.budget, node.name)?;
    let mut back = vec![0; rank];
    front.iter().enumerate().for_each(|(place, &axis)| back[axis] = place);
    let result = back.iter().map(|&axis| joined[axis]).collect();
    let places = permuted(&joined, &back);
    Ok(Value::Activation(node.builder.gathered(&value, result, &places, node.budget, node.name)?))
}

/// `Resize` and `Upsample` by whole factors, each number repeated.
pub(super) fn upsample(node: &mut Node<'_>) -> Result<Value, Failure> {
    let repeats = "only whole factors are read, with mode nearest; use ConvTranspose";
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        _ => return unsupported("only values that depend on the input are resized"),
    };
    let coordinates = node.text_attribute("coordinate_transformation_mode");
    let nearest = node.text_attribute("nearest_mode");
    let first = match coordinates.as_str() {
        // Of numbers between two, the one before.
        "asymmetric" => nearest == "floor" || node.proto.op_type == "Upsample",
        "" | "half_pixel" | "half_pixel_symmetric" => !matches!(nearest.as_str(), "floor" | "ceil"),
        _ => false,
    };
    let old = node.proto.op_type == "Upsample" || node.opset < 11;
    if !(first || old) || !matches!(node.text_attribute("mode").as_str(), "" | "nearest") {
        return unsupported(repeats);
    }
    let rank = activation.shape.len() + 1;
    let scales = if old { node.optional(1) } else { node.optional(2) };
    let factors: Vec<usize> = match (scales, node.optional(3)) {
        (Some(Value::Float(scales)), _) if scales.len() == rank => {
            let whole = |&scale: &f64| {
                (scale >= 1.0 && scale.fract() == 0.0 && scale < 65_536.0).then_some(scale as usize)
            };
            match scales.iter().map(whole).collect() {
                Some(factors) => factors,
                None => return unsupported(repeats),
            }
        }
        (_, Some(Value::Integer(sizes))) if sizes.len() == rank => {
            let own = activation.shape.iter();
            let whole = |(size, &own): (&Integer, &usize)| match size {
                Integer::Known(size) => usize::try_from(*size)
                    .ok()
                    .filter(|size| *size > 0 && size.is_multiple_of(own))
                    .map(|size| size / own),
                Integer::Batch => None,
            };
            match sizes.iter().skip(1).zip(own).map(whole).collect::<Option<Vec<_>>>() {
                Some(factors) => std::iter::once(1).chain(factors).collect(),
                None => return unsupported(repeats),
            }
        }
        _ => return unsupported(repeats),
    };
    if factors[0] != 1 {
        return unsupported(BATCH);
    }
    let shape: Vec<usize> = activation
        .shape
        .iter()
        .zip(&factors[1..])
        .map(|(size, factor)| size.saturating_mul(*factor))
        .collect();
    check_size(constant::extent(&shape))?;
    node.budget.charge(constant::extent(&shape), node.name)?;
    let mut moved = positions(&activation.shape);
    for (axis, &factor) in factors.iter().enumerate().skip(1) {
        let indices: Vec<usize> = (0..moved.shape()[axis] * factor).map(|index| index / factor).collect();
        moved = moved.select(ndarray::Axis(axis), &indices);
    }
    taken(node, &activation, &Value::integer(moved))
}

/// The side of the blocks of `DepthToSpace` and `SpaceToDepth`, and channels, height and width.
fn blocks(node: &Node<'_>) -> Result<(Activation, usize, [usize; 3]), Failure> {
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        _ => return unsupported("only values that depend on the input are moved"),
    };
    let [channels, height, width] = activation.shape[..] else {
        return mismatch(node.name, "[batch, channels, height, width]", list(&activation.shape));
    };
    match usize::try_from(node.integer_attribute("blocksize", 0)) {
        Ok(side) if (1..=channels.max(height).max(width)).contains(&side) => {
            Ok((activation, side, [channels, height, width]))
        }
        _ => mismatch(node.name, "a blocksize that fits", node.integer_attribute("blocksize", 0).to_string()),
    }
}

/// The numbers of `activation`, seen in the shape `axes`, with these in the order `order`.
fn rearranged(
    node: &mut Node<'_>,
    activation: &Activation,
    axes: &[usize],
    order: &[usize],
    shape: Vec<usize>,
) -> Result<Value, Failure> {
    let places = permuted(axes, order);
    let moved: Vec<usize> = order.iter().map(|&axis| axes[axis]).collect();
    let value = node.builder.gathered(activation, moved, &places, node.budget, node.name)?;
    Ok(Value::Activation(value.reshaped(shape)))
}

/// `DepthToSpace`.
pub(super) fn depth_to_space(node: &mut Node<'_>) -> Result<Value, Failure> {
    let (activation, side, [channels, height, width]) = blocks(node)?;
    if !channels.is_multiple_of(side * side) {
        return mismatch(node.name, "channels for whole blocks", channels.to_string());
    }
    let depth = channels / (side * side);
    let shape = vec![depth, height * side, width * side];
    if node.text_attribute("mode") == "CRD" {
        rearranged(node, &activation, &[depth, side, side, height, width], &[0, 3, 1, 4, 2], shape)
    } else {
        rearranged(node, &activation, &[side, side, depth, height, width], &[2, 3, 0, 4, 1], shape)
    }
}

/// `SpaceToDepth`.
pub(super) fn space_to_depth(node: &mut Node<'_>) -> Result<Value, Failure> {
    let (activation, side, [channels, height, width]) = blocks(node)?;
    if !height.is_multiple_of(side) || !width.is_multiple_of(side) {
        return mismatch(node.name, "a height and width of whole blocks", format!("{height} x {width}"));
    }
    let (height, width) = (height / side, width / side);
    let shape = vec![channels * side * side, height, width];
    let order = if node.text_attribute("mode") == "CRD" { [0, 2, 4, 1, 3] } else { [2, 4, 0, 1, 3] };
    rearranged(node, &activation, &[channels, height, side, width, side], &order, shape)
}

/// `Pad` with zeros, the nearest number, or a reflection.
pub(super) fn pad(node: &mut Node<'_>) -> Result<Value, Failure> {
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        _ => return unsupported("only values that depend on the input are padded"),
    };
    let rank = activation.shape.len() + 1;
    let pads = match node.integers_attribute("pads") {
        Some(pads) => pads,
        None => node.integers(1)?,
    };
    let filler = match node.optional(2) {
        Some(Value::Float(filler)) => filler.iter().any(|&filler| filler != 0.0),
        Some(Value::Integer(filler)) => filler.iter().any(|&filler| filler != Integer::Known(0)),
        Some(_) => true,
        None => node.float_attribute("value", 0.0)? != 0.0,
    };
    let axes: Vec<usize> = match node.optional(3) {
        Some(_) => {
            let axes = node.integers(3)?;
            axes.iter().map(|&axis| normalise_axis(axis, rank, node.name)).collect::<Result<_, _>>()?
        }
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return mismatch(node.name, format!("{} pads", 2 * axes.len()), format!("{}", pads.len()));
    }
    let mode = match node.text_attribute("mode").as_str() {
        "" | "constant" if filler => return unsupported("pads with a number other than zero"),
        "" => "constant".to_owned(),
        mode => mode.to_owned(),
    };
    let mut amounts = vec![(0_usize, 0_usize); rank];
    for (index, &axis) in axes.iter().enumerate() {
        match (usize::try_from(pads[index]), usize::try_from(pads[index + axes.len()])) {
            (Ok(before), Ok(after)) => amounts[axis] = (before, after),
            _ => return unsupported("negative pads cut numbers off; use Slice"),
        }
    }
    if amounts.remove(0) != (0, 0) {
        return unsupported(BATCH);
    }
    let mut places = vec![Some(0)];
    let mut result = Vec::with_capacity(activation.shape.len());
    for (&size, &(before, after)) in activation.shape.iter().zip(&amounts) {
        let length = size.saturating_add(before).saturating_add(after);
        check_size(places.len().saturating_mul(length))?;
        node.budget.charge(places.len().saturating_mul(length), node.name)?;
        let mut along = Vec::with_capacity(length);
        for index in 0..length {
            let place = index as i64 - before as i64;
            let last = size as i64 - 1;
            along.push(match mode.as_str() {
                "constant" => usize::try_from(place).ok().filter(|&place| place < size),
                "edge" => Some(place.clamp(0, last) as usize),
                "reflect" if before.max(after) < size => Some((last - (last - place.abs()).abs()) as usize),
                _ => {
                    return unsupported(
                        "pads in a way that is not supported; use mode constant, edge or reflect",
                    );
                }
            });
        }
        places = places
            .iter()
            .flat_map(|&outer: &Option<usize>| along.iter().map(move |&place| Some(outer? * size + place?)))
            .collect();
        result.push(length);
    }
    Ok(Value::Activation(node.builder.gathered(&activation, result, &places, node.budget, node.name)?))
}
