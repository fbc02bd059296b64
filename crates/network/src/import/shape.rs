//! Operators that change the shape of a value but none of its numbers.

use ndarray::{ArrayD, IxDyn};

use super::{
    MAXIMUM_RANK,
    activation::Activation,
    constant::{self, Range},
    layout,
    node::Node,
    value::{Failure, Integer, Value, list, mismatch, normalise_axis, unsupported},
};

const BATCH_MIXED: &str = "mixes the samples of a batch; keep the batch as the first dimension, for \
                           PyTorch with x.flatten(1) or x.view(x.size(0), -1), and export it as free";

/// `Reshape`.
pub(super) fn reshape(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = node.input(0)?;
    let target = match node.input(1)? {
        Value::Integer(target) if target.ndim() == 1 && target.len() <= MAXIMUM_RANK => target,
        Value::Integer(target) => {
            return mismatch(
                node.name,
                format!("a shape of at most {MAXIMUM_RANK} dimensions"),
                format!("{:?}", target.shape()),
            );
        }
        _ => return unsupported("the shape must be constant"),
    };
    let target: Vec<Integer> = target.iter().copied().collect();
    let allow_zero = node.integer_attribute("allowzero", 0) != 0;
    match value {
        Value::Float(_) | Value::Integer(_) => {
            let known: Option<Vec<i64>> = target
                .iter()
                .map(|element| if let Integer::Known(size) = element { Some(*size) } else { None })
                .collect();
            match known {
                Some(target) => constant::reshape(&value, &target, allow_zero, node.name, node.budget),
                None => unsupported("gives a constant the shape of a batch"),
            }
        }
        Value::Activation(activation) => {
            match (
                sample_shape(&activation, &target, allow_zero, node.batch, node.name),
                row_shape(&activation, &target, node.batch),
            ) {
                (Ok(shape), _) => Ok(Value::Activation(activation.reshaped(shape))),
                (Err(_), Some(shape)) => Ok(Value::Rows(activation.reshaped(shape))),
                (Err(failure), None) => Err(failure),
            }
        }
        Value::Rows(activation) => {
            if target.contains(&Integer::Known(0)) {
                return unsupported(BATCH_MIXED);
            }
            let shape = sample_shape(&activation, &target, true, node.batch, node.name);
            match (shape, row_shape(&activation, &target, node.batch)) {
                (Ok(shape), _) => Ok(Value::Activation(activation.reshaped(shape))),
                (Err(_), Some(shape)) => Ok(Value::Rows(activation.reshaped(shape))),
                (Err(failure), None) => Err(failure),
            }
        }
        value => on_samples(value, |activation| {
            sample_shape(activation, &target, allow_zero, node.batch, node.name)
        }),
    }
}

/// Shape of a sample after `Reshape` to `target` when a part of it becomes rows of the first dimension.
fn row_shape(activation: &Activation, target: &[Integer], batch: Option<usize>) -> Option<Vec<usize>> {
    let (first, rest) = target.split_first()?;
    let known = |size: &Integer| match size {
        Integer::Known(size) => usize::try_from(*size).ok().filter(|&size| size > 0),
        Integer::Batch => None,
    };
    let rest: Vec<usize> = rest.iter().map(known).collect::<Option<_>>()?;
    let size = constant::extent(&rest);
    let (features, rows) = (activation.features(), activation.features() / size);
    let free = match *first {
        Integer::Known(-1) => true,
        Integer::Known(whole) => {
            batch.is_some_and(|batch| usize::try_from(whole) == Ok(batch.saturating_mul(rows)))
        }
        Integer::Batch => false,
    };
    (free && rows > 1 && rows * size == features && !rest.is_empty())
        .then(|| std::iter::once(rows).chain(rest).collect())
}

/// Applies a change of shape to whatever depends on the input.
fn on_samples(
    value: Value,
    shape: impl FnOnce(&Activation) -> Result<Vec<usize>, Failure>,
) -> Result<Value, Failure> {
    Ok(match value {
        Value::Activation(activation) => {
            let shape = shape(&activation)?;
            Value::Activation(activation.reshaped(shape))
        }
        Value::Scores { logits, source } => {
            let shape = shape(&logits)?;
            Value::Scores { logits: logits.reshaped(shape), source }
        }
        // One number has no order that a shape could change.
        Value::Total { logits, source } => Value::Total { logits, source },
        Value::Sigmoid { logit, complement, source } => {
            let shape = shape(&logit)?;
            Value::Sigmoid { logit: logit.reshaped(shape), complement, source }
        }
        _ => return unsupported("only changes the shape of constants and of values of the input"),
    })
}

/// Shape of a sample after `Reshape` to `target`.
fn sample_shape(
    activation: &Activation,
    target: &[Integer],
    allow_zero: bool,
    batch: Option<usize>,
    node: &str,
) -> Result<Vec<usize>, Failure> {
    let features = activation.features();
    let failed = || {
        mismatch(node, format!("a shape [batch, ...] of {features} values a sample"), format!("{target:?}"))
    };
    let Some((first, rest)) = target.split_first() else { return unsupported(BATCH_MIXED) };
    let mut shape = Vec::with_capacity(rest.len());
    let mut free = None;
    for (position, &size) in rest.iter().enumerate() {
        shape.push(match size {
            Integer::Known(0) if !allow_zero => match activation.shape.get(position) {
                Some(&size) => size,
                None => return failed(),
            },
            Integer::Known(-1) if free.is_none() => {
                free = Some(position);
                1
            }
            Integer::Known(size) => match usize::try_from(size) {
                Ok(size) => size,
                Err(_) => return failed(),
            },
            Integer::Batch => return unsupported(BATCH_MIXED),
        });
    }
    let known = shape.iter().fold(1, |product: usize, &size| product.saturating_mul(size));
    let keeps_batch = match *first {
        Integer::Batch => true,
        Integer::Known(0) => !allow_zero,
        // The first dimension is the batch exactly when the others hold one sample.
        Integer::Known(-1) => free.is_none() && known == features,
        Integer::Known(size) => batch.is_some_and(|batch| usize::try_from(size) == Ok(batch)),
    };
    if !keeps_batch {
        return unsupported(BATCH_MIXED);
    }
    if let Some(free) = free {
        if known == 0 || !features.is_multiple_of(known) {
            return failed();
        }
        shape[free] = features / known;
    } else if known != features {
        return failed();
    }
    Ok(shape)
}

/// `Flatten`.
pub(super) fn flatten(node: &mut Node<'_>) -> Result<Value, Failure> {
    let axis = node.integer_attribute("axis", 1);
    let name = node.name;
    match node.input(0)? {
        value @ (Value::Float(_) | Value::Integer(_)) => {
            let shape = match &value {
                Value::Float(array) => array.shape().to_vec(),
                Value::Integer(array) => array.shape().to_vec(),
                _ => Vec::new(),
            };
            // Here an axis may also stand after the last dimension.
            let axis = normalise_axis(axis, shape.len() + 1, name)?;
            let rows: usize = shape[..axis.min(shape.len())].iter().product();
            let columns: usize = shape[axis.min(shape.len())..].iter().product();
            constant::reshape(&value, &[rows as i64, columns as i64], true, name, node.budget)
        }
        value => on_samples(value, |activation| {
            let axis = normalise_axis(axis, activation.shape.len() + 1, name)?;
            // Dimensions before the axis join the batch, which only ones may do.
            match axis.checked_sub(1) {
                Some(first) if activation.shape[..first].iter().all(|&size| size == 1) => {
                    Ok(vec![activation.features()])
                }
                _ => unsupported(BATCH_MIXED),
            }
        }),
    }
}

/// Axes of `Squeeze` and `Unsqueeze`: a parameter before operator set 13, then an input.
fn axes(node: &Node<'_>) -> Result<Option<Vec<i64>>, Failure> {
    let axes = match node.integers_attribute("axes") {
        Some(axes) => Some(axes),
        None if node.optional(1).is_some() => Some(node.integers(1)?),
        None => None,
    };
    if let Some(axes) = &axes
        && axes.len() > MAXIMUM_RANK
    {
        return mismatch(node.name, format!("at most {MAXIMUM_RANK} axes"), format!("{}", axes.len()));
    }
    Ok(axes)
}

/// Removes the dimensions at `axes` of `shape`, or all of one without axes.
fn squeezed(shape: &[usize], axes: Option<&[i64]>, node: &str) -> Result<Vec<usize>, Failure> {
    let removed: Vec<usize> = match axes {
        None => (0..shape.len()).filter(|&axis| shape[axis] == 1).collect(),
        Some(axes) => {
            axes.iter().map(|&axis| normalise_axis(axis, shape.len(), node)).collect::<Result<_, _>>()?
        }
    };
    if let Some(&axis) = removed.iter().find(|&&axis| shape[axis] != 1) {
        return mismatch(node, format!("size 1 in dimension {axis}"), format!("{}", shape[axis]));
    }
    Ok((0..shape.len()).filter(|axis| !removed.contains(axis)).map(|axis| shape[axis]).collect())
}

/// Inserts dimensions of one so that they stand at `axes` of the result.
fn unsqueezed(shape: &[usize], axes: &[i64], node: &str) -> Result<Vec<usize>, Failure> {
    let rank = shape.len() + axes.len();
    let mut inserted = vec![false; rank];
    for &axis in axes {
        let axis = normalise_axis(axis, rank, node)?;
        if std::mem::replace(&mut inserted[axis], true) {
            return mismatch(node, "different axes", format!("axis {axis} twice"));
        }
    }
    let mut rest = shape.iter().copied();
    // As many places are left as the shape has dimensions.
    Ok(inserted.into_iter().map(|new| if new { 1 } else { rest.next().unwrap_or(1) }).collect())
}

/// `Squeeze`.
pub(super) fn squeeze(node: &mut Node<'_>) -> Result<Value, Failure> {
    let (axes, name, batch) = (axes(node)?, node.name, node.batch);
    let axes = axes.as_deref();
    match node.input(0)? {
        value @ (Value::Float(_) | Value::Integer(_)) => {
            constant_shape(node, &value, |shape| squeezed(shape, axes, name))
        }
        value => on_samples(value, |activation| match axes {
            // Without axes a batch of one would vanish as well.
            None if batch == Some(1) => unsupported(BATCH_MIXED),
            None => squeezed(&activation.shape, None, name),
            Some(axes) => {
                let rank = activation.shape.len() + 1;
                let mut inner = Vec::with_capacity(axes.len());
                for &axis in axes {
                    match normalise_axis(axis, rank, name)?.checked_sub(1) {
                        Some(axis) => inner.push(axis as i64),
                        None => return unsupported(BATCH_MIXED),
                    }
                }
                squeezed(&activation.shape, Some(&inner), name)
            }
        }),
    }
}

/// `Unsqueeze`.
pub(super) fn unsqueeze(node: &mut Node<'_>) -> Result<Value, Failure> {
    let Some(axes) = axes(node)? else {
        return Err(node.broken("axes are missing").into());
    };
    let name = node.name;
    match node.input(0)? {
        value @ (Value::Float(_) | Value::Integer(_)) => {
            constant_shape(node, &value, |shape| unsqueezed(shape, &axes, name))
        }
        value => on_samples(value, |activation| {
            let rank = activation.shape.len() + 1 + axes.len();
            if rank > MAXIMUM_RANK {
                return mismatch(name, format!("at most {MAXIMUM_RANK} dimensions"), format!("{rank}"));
            }
            let mut inner = Vec::with_capacity(axes.len());
            for &axis in &axes {
                match normalise_axis(axis, rank, name)?.checked_sub(1) {
                    Some(axis) => inner.push(axis as i64),
                    None => return unsupported(BATCH_MIXED),
                }
            }
            unsqueezed(&activation.shape, &inner, name)
        }),
    }
}

fn constant_shape(
    node: &mut Node<'_>,
    value: &Value,
    change: impl FnOnce(&[usize]) -> Result<Vec<usize>, Failure>,
) -> Result<Value, Failure> {
    let shape = match value {
        Value::Float(array) => change(array.shape())?,
        Value::Integer(array) => change(array.shape())?,
        _ => return unsupported("expected a constant"),
    };
    let target: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    constant::reshape(value, &target, true, node.name, node.budget)
}

/// `Shape`, since operator set 15 of a part of the dimensions.
pub(super) fn shape(node: &mut Node<'_>) -> Result<Value, Failure> {
    let known =
        |shape: &[usize]| -> Vec<Integer> { shape.iter().map(|&size| Integer::Known(size as i64)).collect() };
    let sizes = match node.input(0)? {
        Value::Float(array) => known(array.shape()),
        Value::Integer(array) => known(array.shape()),
        Value::Activation(activation) => {
            let mut sizes = vec![Integer::Batch];
            sizes.extend(known(&activation.shape));
            sizes
        }
        _ => return unsupported("only needed before the last layer"),
    };
    let range = Range {
        axis: 0,
        start: node.integer_attribute("start", 0),
        end: node.integer_attribute("end", i64::MAX),
        step: 1,
    };
    let sizes = ArrayD::from_shape_vec(IxDyn(&[sizes.len()]), sizes)
        .expect("a vector has as many elements as its length");
    constant::slice(&Value::integer(sizes), &[range], node.name, node.budget)
}

/// `Slice`: parameters before operator set 10, then inputs.
pub(super) fn slice(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = node.input(0)?;
    let (starts, ends, axes, steps) =
        match (node.integers_attribute("starts"), node.integers_attribute("ends")) {
            (Some(starts), Some(ends)) => (starts, ends, node.integers_attribute("axes"), None),
            _ => {
                let optional = |index| -> Result<Option<Vec<i64>>, Failure> {
                    node.optional(index).map(|_| node.integers(index)).transpose()
                };
                (node.integers(1)?, node.integers(2)?, optional(3)?, optional(4)?)
            }
        };
    let count = starts.len();
    let axes = axes.unwrap_or_else(|| (0..count.min(MAXIMUM_RANK) as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; count.min(MAXIMUM_RANK)]);
    if count > MAXIMUM_RANK || ends.len() != count || axes.len() != count || steps.len() != count {
        let found = list(&[count, ends.len(), axes.len(), steps.len()]);
        return mismatch(
            node.name,
            format!("as many starts, ends, axes and steps, at most {MAXIMUM_RANK}"),
            found,
        );
    }
    let ranges: Vec<Range> = starts
        .into_iter()
        .zip(ends)
        .zip(axes.into_iter().zip(steps))
        .map(|((start, end), (axis, step))| Range { axis, start, end, step })
        .collect();
    match value {
        Value::Activation(activation) => layout::slice(node, &activation, &ranges),
        value => constant::slice(&value, &ranges, node.name, node.budget),
    }
}
