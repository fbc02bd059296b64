//! Products of matrices, with constants at every position of a value and between values: import against
//! arithmetic written out here, and fixed point within its proven bounds.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{
    WithAttributes, floats,
    graphs::{check, head, network, numbers, operations},
    node,
};
use concilium_network::{
    MatrixProduct, Operation,
    onnx::{NodeProto, TensorProto},
};
use ndarray::{ArrayD, Axis, IxDyn};

/// The product of stacks of matrices, as NumPy's `matmul`.
fn product(left: &ArrayD<f64>, right: &ArrayD<f64>) -> ArrayD<f64> {
    let rank = left.ndim().max(right.ndim());
    let widened = |array: &ArrayD<f64>| {
        let mut array = array.clone();
        while array.ndim() < rank {
            array.insert_axis_inplace(Axis(0));
        }
        array
    };
    let (left, right) = (widened(left), widened(right));
    let (rows, inner, columns) = (left.shape()[rank - 2], left.shape()[rank - 1], right.shape()[rank - 1]);
    assert_eq!(right.shape()[rank - 2], inner);
    let mut shape: Vec<usize> =
        (0..rank - 2).map(|axis| left.shape()[axis].max(right.shape()[axis])).collect();
    shape.extend([rows, columns]);
    ArrayD::from_shape_fn(IxDyn(&shape), |index| {
        let at = |array: &ArrayD<f64>, last: [usize; 2]| {
            let stack = (0..rank - 2).map(|axis| index[axis].min(array.shape()[axis] - 1));
            array[IxDyn(&stack.chain(last).collect::<Vec<_>>())]
        };
        (0..inner)
            .map(|place| at(&left, [index[rank - 2], place]) * at(&right, [place, index[rank - 1]]))
            .sum()
    })
}

/// A constant and the same numbers for the arithmetic here.
fn constant(name: &str, shape: &[usize], seed: u64) -> (TensorProto, ArrayD<f64>) {
    let values = numbers(seed, shape.iter().product());
    let dims: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    let array = ArrayD::from_shape_vec(IxDyn(shape), values.iter().map(|&value| value.into()).collect());
    (floats(name, &dims, &values), array.unwrap())
}

#[test]
fn a_dense_layer_at_each_position_shares_its_weights_once() {
    for shape in [&[5, 4][..], &[2, 3, 4], &[1, 4], &[4]] {
        let (weights, matrix) = constant("w", &[4, 3], 1);
        let (bias, summand) = constant("b", &[3], 2);
        let (factor, scale) = constant("s", &[3], 3);
        let nodes = vec![
            node("MatMul", &["x", "w"], "p"),
            node("Add", &["b", "p"], "q"),
            node("Mul", &["q", "s"], "r"),
            node("Relu", &["r"], "a"),
        ];
        let found = check(shape, nodes, vec![weights, bias, factor], |x| {
            let x = if x.ndim() == 1 { x.clone().insert_axis(Axis(0)) } else { x.clone() };
            ((product(&x, &matrix) + &summand) * &scale).mapv(|value| value.max(0.0))
        });
        let positions: usize = shape[..shape.len() - 1].iter().product();
        let first = &found.steps()[0];
        assert_eq!(first.operation.parameters(), 4 * 3 + 3, "{:?}", first.operation);
        let expected: &[_] = if positions == 1 {
            &["dense", "relu", "dense"]
        } else {
            &["convolution", "gather", "relu", "dense"]
        };
        assert_eq!(operations(&found), expected);
    }
}

#[test]
fn layers_at_each_position_are_composed_with_what_is_linear_between_them() {
    let (first, one) = constant("w", &[4, 6], 1);
    let (second, two) = constant("v", &[6, 3], 2);
    let (scale, factor) = constant("s", &[4], 3);
    let nodes = vec![
        node("Mul", &["x", "s"], "p"),
        node("MatMul", &["p", "w"], "q"),
        node("Add", &["q", "c"], "r"),
        node("MatMul", &["r", "v"], "a"),
    ];
    let (summand, shift) = constant("c", &[6], 4);
    let found = check(&[5, 4], nodes, vec![first, second, scale, summand], |x| {
        product(&(product(&(x * &factor), &one) + &shift), &two)
    });
    assert_eq!(operations(&found), ["convolution", "gather", "dense"]);

    // A summand that differs from position to position cannot become part of the layer after it.
    let (first, one) = constant("w", &[4, 3], 1);
    let (position, shift) = constant("c", &[5, 4], 4);
    let nodes = vec![node("Add", &["x", "c"], "p"), node("MatMul", &["p", "w"], "a")];
    let found = check(&[5, 4], nodes, vec![first, position], |x| product(&(x + &shift), &one));
    assert_eq!(operations(&found), ["shift", "convolution", "gather", "dense"]);
}

#[test]
fn stacks_of_constant_matrices_are_groups() {
    for (value, stack) in
        [(&[2, 5, 4][..], &[2, 4, 3][..]), (&[1, 5, 4], &[2, 4, 3]), (&[2, 5, 4], &[1, 2, 4, 3])]
    {
        let (weights, matrices) = constant("w", stack, 1);
        let matrices = if stack.len() == 4 { matrices.remove_axis(Axis(0)) } else { matrices };
        let found =
            check(value, vec![node("MatMul", &["x", "w"], "a")], vec![weights], |x| product(x, &matrices));
        let convolution = found.steps().iter().find_map(|step| match step.operation {
            Operation::Convolution(convolution) => Some(convolution),
            _ => None,
        });
        assert_eq!(convolution.unwrap().groups, 2);
    }
}

#[test]
fn constants_are_factors_on_the_left_too() {
    for (value, stack) in [
        (&[4, 5][..], &[3, 4][..]),
        (&[2, 4, 5], &[3, 4]),
        (&[2, 4, 5], &[2, 3, 4]),
        (&[2, 4, 5], &[1, 1, 3, 4]),
        (&[1, 4, 5], &[2, 3, 4]),
    ] {
        let (weights, matrices) = constant("w", stack, 1);
        let matrices = if stack.len() == 4 { matrices.remove_axis(Axis(0)) } else { matrices };
        let found =
            check(value, vec![node("MatMul", &["w", "x"], "a")], vec![weights], |x| product(&matrices, x));
        let shared: usize = found.steps().iter().map(|step| step.operation.parameters()).sum();
        let single = stack.len() == 4 || stack.len() == 2;
        let channels = 3 * value.iter().chain(stack).take(1).max().unwrap();
        assert!(!single || shared <= 3 * 4 + channels + 3 * 3 * 2 * 5 + 3, "{shared} parameters");
    }
    // Vectors have no dimension in the result.
    let (weights, vector) = constant("w", &[4], 1);
    let nodes = vec![node("MatMul", &["x", "w"], "a")];
    check(&[5, 4], nodes, vec![weights.clone()], |x| {
        product(x, &vector.clone().insert_axis(Axis(1))).remove_axis(Axis(1))
    });
    check(&[4, 5], vec![node("MatMul", &["w", "x"], "a")], vec![weights], |x| {
        product(&vector.clone().insert_axis(Axis(0)), x).remove_axis(Axis(0))
    });
}

#[test]
fn values_are_multiplied_as_matrices() {
    let transposed = || node("Transpose", &["x"], "t");
    let nodes = vec![transposed().integers("perm", &[0, 2, 1]), node("MatMul", &["x", "t"], "a")];
    let found = check(&[3, 4], nodes, vec![], |x| {
        let right = x.view().reversed_axes().to_owned();
        product(x, &right)
    });
    assert_eq!(operations(&found), ["gather", "matrix product", "dense"]);
    let shape = MatrixProduct { groups: 1, rows: 3, inner: 4, columns: 3 };
    assert_eq!(found.steps()[1].operation, Operation::MatrixProduct(shape));

    // Heads side by side, one of them for all.
    let nodes = vec![
        transposed().integers("perm", &[0, 1, 3, 2]),
        node("ReduceMean", &["t"], "m").integers("axes", &[1]).integer("keepdims", 1),
        node("MatMul", &["x", "m"], "a"),
    ];
    check(&[2, 3, 4], nodes, vec![], |x| {
        let right = x.view().permuted_axes(IxDyn(&[0, 2, 1])).to_owned();
        product(x, &right.mean_axis(Axis(0)).unwrap().insert_axis(Axis(0)))
    });
}

#[test]
fn sums_over_letters_are_products_of_matrices() {
    let einsum =
        |inputs: &[&str], equation: &str| vec![node("Einsum", inputs, "a").text("equation", equation)];
    check(&[3, 4], einsum(&["x", "x"], "bij, bkj -> bik"), vec![], |x| {
        product(x, &x.view().reversed_axes().to_owned())
    });
    check(&[3, 4], einsum(&["x", "x"], "bij,bij->bji"), vec![], |x| (x * x).reversed_axes());
    let (weights, matrix) = constant("w", &[5, 4], 1);
    check(&[3, 4], einsum(&["x", "w"], "bij,kj->bik"), vec![weights.clone()], |x| {
        product(x, &matrix.view().reversed_axes().to_owned())
    });
    check(&[4, 3], einsum(&["w", "x"], "kj,bji->bik"), vec![weights], |x| {
        product(&matrix, x).reversed_axes()
    });
    // Heads: one matrix for each.
    let (stack, matrices) = constant("w", &[2, 4, 3], 2);
    check(&[5, 2, 4], einsum(&["x", "w"], "bthd,hde->bhte"), vec![stack], |x| {
        product(&x.view().permuted_axes(IxDyn(&[1, 0, 2])).to_owned(), &matrices)
    });
    for equation in
        ["bij,bkj", "bij->bji", "bii,bij->bij", "bij,cjk->bik", "ijb,bkj->bik", "bij,bkj->bi", "bij,bjk->bik"]
    {
        let mut nodes = einsum(&["x", "x"], equation);
        let (more, weights) = head("a", 9);
        nodes.extend(more);
        let text = network(&[3, 4], nodes, weights).err().unwrap().to_string();
        assert!(text.contains("Einsum_a"), "{equation}: {text}");
    }
}

#[test]
fn products_that_mix_samples_are_refused_by_their_node() {
    let refused = |shape: &[i64], nodes: Vec<NodeProto>, dims: &[i64]| {
        let (mut nodes, mut constants) = (nodes, vec![]);
        let (more, weights) = head("a", 4);
        nodes.extend(more);
        constants.extend(weights);
        constants.push(floats("w", dims, &numbers(5, dims.iter().product::<i64>() as usize)));
        let text = network(shape, nodes, constants).err().unwrap().to_string();
        assert!(text.contains("MatMul_a"), "{text}");
        text
    };
    let samples = "samples";
    assert!(refused(&[2], vec![node("MatMul", &["w", "x"], "a")], &[2, 2]).contains(samples));
    assert!(refused(&[2], vec![node("MatMul", &["x", "w"], "a")], &[3, 2, 2]).contains(samples));
    assert!(refused(&[2, 2], vec![node("MatMul", &["x", "w"], "a")], &[3, 2, 2]).contains(samples));
    assert!(
        refused(&[2, 2], vec![node("MatMul", &["x", "w"], "a")], &[3, 2]).contains("weights for 2 inputs")
    );
    assert!(
        refused(&[2, 2], vec![node("MatMul", &["w", "x"], "a")], &[2, 3]).contains("weights for 2 inputs")
    );
    assert!(refused(&[3, 2, 2], vec![node("MatMul", &["x", "w"], "a")], &[2, 2, 2]).contains("broadcast"));
    assert!(refused(&[3, 2], vec![node("MatMul", &["x", "x"], "a")], &[1]).contains("weights for 2 inputs"));
    assert!(refused(&[3], vec![node("MatMul", &["x", "x"], "a")], &[1]).contains(samples));
}
