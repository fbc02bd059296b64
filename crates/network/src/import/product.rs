//! Products of values with constant matrices.
//!
//! A matrix that is applied to every row of a value, as a dense layer at each position of a sequence is, becomes a
//! convolution over the rows: its weights are shared once, not once for each row.

use ndarray::{Array1, Array2, Array3, ArrayD, Axis, Ix2, Ix3, IxDyn};

use super::{
    ImportError,
    activation::Activation,
    constant,
    error::quoted,
    layout,
    node::Node,
    value::{Failure, Value, list, mismatch, unsupported},
};
use crate::{
    erase::Erasing,
    program::{Convolution, MatrixProduct},
};

/// `Gemm`: alpha · A · B + beta · C.
pub(super) fn gemm(node: &mut Node<'_>) -> Result<Value, Failure> {
    let (activation, weights) = match (node.input(0)?, node.input(1)?) {
        (Value::Activation(activation), Value::Float(weights)) => (activation, weights),
        (left, right) => return not_a_layer(&left, &right),
    };
    if node.integer_attribute("transA", 0) != 0 {
        return unsupported("transA mixes the samples of a batch; export with transA = 0");
    }
    let alpha = node.float_attribute("alpha", 1.0)?;
    let beta = node.float_attribute("beta", 1.0)?;
    let weights = matrix(&weights, node)?;
    let weights = if node.integer_attribute("transB", 0) == 0 {
        Erasing::new(&*weights * alpha)
    } else {
        Erasing::new(weights.t().as_standard_layout().into_owned() * alpha)
    };
    let (rows, features) = match activation.shape.as_slice() {
        [features] if !node.in_rows => (1, *features),
        [rows, features] if node.in_rows => (*rows, *features),
        shape => {
            return mismatch(node.name, "[batch, features]", format!("[batch, {}]", list(shape)));
        }
    };
    check_inner(node.name, features, weights.nrows())?;
    let outputs = weights.ncols();
    let bias = match node.optional(2) {
        None => Array1::zeros(outputs),
        Some(Value::Float(bias)) => {
            let bias = bias.broadcast(IxDyn(&[1, outputs])).filter(|_| bias.ndim() <= 2);
            match bias.map(|bias| bias.iter().map(|&value| value * beta).collect()) {
                Some(bias) => bias,
                None => {
                    let found = node.input(2)?.description();
                    return mismatch(node.name, format!("a bias of {outputs} values"), found);
                }
            }
        }
        Some(_) => return unsupported("the bias must be constant"),
    };
    let shape = if node.in_rows { vec![rows, outputs] } else { vec![outputs] };
    let weights = Erasing::new(weights.view().insert_axis(Axis(0)).to_owned());
    let bias = Erasing::new(bias.insert_axis(Axis(0)));
    let result =
        activation.multiplied_rows(node.builder, rows, (weights, bias), shape, node.budget, node.name)?;
    Ok(Value::Activation(result))
}

/// `MatMul`.
pub(super) fn matrix_product(node: &mut Node<'_>) -> Result<Value, Failure> {
    match (node.input(0)?, node.input(1)?) {
        (Value::Activation(activation), Value::Float(weights)) => times_constant(node, &activation, &weights),
        (Value::Float(weights), Value::Activation(activation)) => constant_times(node, &weights, &activation),
        (Value::Activation(left), Value::Activation(right)) => of_values(node, &left, &right),
        (left, right) => not_a_layer(&left, &right),
    }
}

/// `MatMul` of two values that depend on the input: `[..., rows, inner]` times `[..., inner, columns]`.
fn of_values(node: &mut Node<'_>, left: &Activation, right: &Activation) -> Result<Value, Failure> {
    let ([left_own @ .., rows, inner], [right_own @ .., features, columns]) =
        (left.shape.as_slice(), right.shape.as_slice())
    else {
        return unsupported("the product of two values of two dimensions mixes the samples of a batch");
    };
    if left.shape.len() != right.shape.len() {
        return unsupported(
            "multiplies values of different numbers of dimensions, so that samples would meet",
        );
    }
    check_inner(node.name, *inner, *features)?;
    let Some(common) = constant::common_shape(left_own, right_own) else {
        let found = format!("[{}] and [{}]", list(left_own), list(right_own));
        return mismatch(node.name, "stacks of matrices that broadcast", found);
    };
    let [rows, inner, columns] = [*rows, *inner, *columns];
    let whole = |last: [usize; 2]| -> Vec<usize> { common.iter().copied().chain(last).collect() };
    let left = layout::expand(node, left, &whole([rows, inner]))?;
    let right = layout::expand(node, right, &whole([inner, columns]))?;
    let product = MatrixProduct { groups: constant::extent(&common), rows, inner, columns };
    let shape = whole([rows, columns]);
    Ok(Value::Activation(node.builder.matrix_product(
        product,
        [&left, &right],
        shape,
        node.budget,
        node.name,
    )?))
}

/// Said of products of which one factor would have more dimensions than a sample.
const ADDS_DIMENSIONS: &str = "the constant has more dimensions than the value, so that samples would meet; give it at \
                               most as many";

/// The dimensions before the last two that a value and a constant of stacked matrices broadcast to, those of the
/// constant without the batch.
fn stacks(node: &Node<'_>, value: &[usize], constant: &[usize]) -> Result<(Vec<usize>, Vec<usize>), Failure> {
    let own = match constant.len().checked_sub(value.len()) {
        Some(0) | None => constant,
        Some(1) if constant[0] == 1 => &constant[1..],
        Some(_) => return unsupported(ADDS_DIMENSIONS),
    };
    match constant::common_shape(value, own) {
        Some(common) => Ok((common, own.to_vec())),
        None => {
            let found = format!("[{}] and [{}]", list(value), list(own));
            mismatch(node.name, "stacks of matrices that broadcast", found)
        }
    }
}

/// A value `[..., rows, inner]` times a constant `[..., inner, outer]`.
fn times_constant(
    node: &mut Node<'_>,
    activation: &Activation,
    weights: &ArrayD<f64>,
) -> Result<Value, Failure> {
    let Some((&features, before)) = activation.shape.split_last() else {
        return mismatch(node.name, "[batch, features]", "[batch]");
    };
    // A vector is a matrix of one column, which the result has no dimension for.
    let vector = weights.ndim() == 1;
    let dims = if vector { vec![weights.len(), 1] } else { weights.shape().to_vec() };
    if dims.len() < 2 || dims.contains(&0) {
        let found = format!("shape {:?}", weights.shape());
        return mismatch(node.name, "weights with two dimensions, neither of them zero", found);
    }
    let (stack, [inner, outer]) = (&dims[..dims.len() - 2], [dims[dims.len() - 2], dims[dims.len() - 1]]);
    check_inner(node.name, features, inner)?;
    let single = stack.iter().all(|&size| size == 1);
    let (activation, groups, mut shape) = match before.split_last() {
        _ if single && stack.len() <= before.len() => (activation.clone(), 1, before.to_vec()),
        Some((&rows, own)) => {
            let (common, _) = stacks(node, own, stack)?;
            let mut shape = common.clone();
            shape.push(rows);
            let whole: Vec<usize> = shape.iter().copied().chain([inner]).collect();
            (layout::expand(node, activation, &whole)?, constant::extent(&common), shape)
        }
        None => return unsupported(ADDS_DIMENSIONS),
    };
    let rows = constant::extent(&shape) / groups;
    let matrices = if groups == 1 {
        single_matrix(node, weights, inner, outer)?
    } else {
        let common = &shape[..shape.len() - 1];
        stacked(node, weights, common, [inner, outer])?
    };
    if !vector {
        shape.push(outer);
    }
    let bias = Erasing::new(Array2::zeros((groups, outer)));
    let result =
        activation.multiplied_rows(node.builder, rows, (matrices, bias), shape, node.budget, node.name)?;
    Ok(Value::Activation(result))
}

/// A constant `[..., rows, inner]` times a value `[..., inner, columns]`: a kernel of one number for each of the
/// value's rows, which are channels.
fn constant_times(
    node: &mut Node<'_>,
    weights: &ArrayD<f64>,
    activation: &Activation,
) -> Result<Value, Failure> {
    let [own @ .., inner, columns] = activation.shape.as_slice() else {
        return unsupported("a constant times a value of two dimensions mixes the samples of a batch");
    };
    let (inner, columns) = (*inner, *columns);
    // A vector is a matrix of one row, which the result has no dimension for.
    let vector = weights.ndim() == 1;
    let dims = if vector { vec![1, weights.len()] } else { weights.shape().to_vec() };
    if dims.len() < 2 || dims.contains(&0) {
        let found = format!("shape {:?}", weights.shape());
        return mismatch(node.name, "weights with two dimensions, neither of them zero", found);
    }
    let (stack, [outer, features]) = (&dims[..dims.len() - 2], [dims[dims.len() - 2], dims[dims.len() - 1]]);
    check_inner(node.name, inner, features)?;
    let (common, _) = stacks(node, own, stack)?;
    let groups = constant::extent(&common);
    let whole: Vec<usize> = common.iter().copied().chain([inner, columns]).collect();
    let value = layout::expand(node, activation, &whole)?;
    let mut shape = common.clone();
    if !vector {
        shape.push(outer);
    }
    shape.push(columns);
    if groups > 1 && stack.iter().all(|&size| size == 1) {
        // One matrix for all: the stack stands beside the columns, so that its weights are shared once.
        let matrices = single_matrix(node, weights, outer, inner)?;
        let value = moved(node, &value, [groups, inner, columns], [1, 0, 2])?;
        let product = pointwise(node, &value, &matrices, groups * columns)?;
        let product = moved(node, &product, [outer, groups, columns], [1, 0, 2])?;
        return Ok(Value::Activation(product.reshaped(shape)));
    }
    let matrices = if groups == 1 {
        single_matrix(node, weights, outer, inner)?
    } else {
        stacked(node, weights, &common, [outer, inner])?
    };
    let product = pointwise(node, &value, &matrices, columns)?;
    Ok(Value::Activation(product.reshaped(shape)))
}

/// A value of `shape` with its axes in another order.
fn moved(
    node: &mut Node<'_>,
    value: &Activation,
    shape: [usize; 3],
    order: [usize; 3],
) -> Result<Activation, Failure> {
    let places = layout::permuted(&shape, &order);
    let shape = order.map(|axis| shape[axis]).to_vec();
    node.builder.gathered(value, shape, &places, node.budget, node.name)
}

/// Matrices `[groups, outer, inner]` times a value `[groups, inner, positions]`: a convolution whose windows are one
/// position of all channels of a group.
fn pointwise(
    node: &mut Node<'_>,
    value: &Activation,
    matrices: &Array3<f64>,
    positions: usize,
) -> Result<Activation, Failure> {
    let (groups, outer, inner) = matrices.dim();
    let convolution = Convolution {
        channels: [groups * inner, groups * outer],
        groups,
        ..Convolution::per_channel(groups, positions)
    };
    let matrices = Erasing::new(matrices.view().permuted_axes([0, 2, 1]).as_standard_layout().into_owned());
    let bias = Erasing::new(Array1::zeros(groups * outer));
    let shape = vec![groups * outer, positions];
    Ok(node.builder.convolved(value, convolution, (matrices, bias), shape, node.budget, node.name)?)
}

/// A constant whose dimensions before the last two are one, as a stack of one matrix.
fn single_matrix(
    node: &mut Node<'_>,
    weights: &ArrayD<f64>,
    rows: usize,
    columns: usize,
) -> Result<Erasing<Ix3>, Failure> {
    node.budget.charge(weights.len(), node.name)?;
    let copy = Array3::from_shape_vec((1, rows, columns), weights.iter().copied().collect());
    Ok(Erasing::new(copy.expect("the other dimensions are one")))
}

/// A constant as one matrix for each element of `common`.
fn stacked(
    node: &mut Node<'_>,
    weights: &ArrayD<f64>,
    common: &[usize],
    [rows, columns]: [usize; 2],
) -> Result<Erasing<Ix3>, Failure> {
    let whole: Vec<usize> = common.iter().copied().chain([rows, columns]).collect();
    node.budget.charge(constant::extent(&whole), node.name)?;
    let mut view = weights.view();
    // A dimension of one for the batch.
    if view.ndim() > whole.len() {
        view = view.index_axis_move(Axis(0), 0);
    }
    let copy = view.broadcast(IxDyn(&whole)).expect("the stacks broadcast").iter().copied().collect();
    let copy = Array3::from_shape_vec((constant::extent(common), rows, columns), copy);
    Ok(Erasing::new(copy.expect("there is a matrix for each element")))
}

fn not_a_layer(left: &Value, right: &Value) -> Result<Value, Failure> {
    match (left, right) {
        (Value::Activation(_), Value::Activation(_)) => {
            unsupported("both matrices depend on the input; use MatMul, within a sample")
        }
        _ => unsupported("only a value that depends on the input times a constant is supported"),
    }
}

/// A constant as a matrix, copied.
fn matrix(constant: &ArrayD<f64>, node: &mut Node<'_>) -> Result<Erasing<Ix2>, Failure> {
    match constant.view().into_dimensionality::<Ix2>() {
        Ok(view) if !view.is_empty() => {
            node.budget.charge(view.len(), node.name)?;
            let copy: Array2<f64> = view.as_standard_layout().into_owned();
            Ok(Erasing::new(copy))
        }
        _ => mismatch(
            node.name,
            "weights with two dimensions, neither of them zero",
            format!("shape {:?}", constant.shape()),
        ),
    }
}

fn check_inner(node: &str, features: usize, rows: usize) -> Result<(), Failure> {
    if features == rows {
        return Ok(());
    }
    Err(Failure::Import(ImportError::Shape {
        node: quoted(node),
        expected: format!("weights for {features} inputs"),
        found: format!("weights for {rows}"),
    }))
}
