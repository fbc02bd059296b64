//! `Einsum` of two factors, as a product of matrices with their axes put in order.

use std::collections::HashMap;

use ndarray::{Array2, Array3, IxDyn};

use super::{
    activation::Activation,
    constant, layout,
    node::Node,
    value::{Failure, Value, mismatch, unsupported},
};
use crate::{erase::Erasing, program::MatrixProduct};

/// Letters of the axes in the roles that they have in a product of stacks of matrices.
struct Roles {
    groups: Vec<char>,
    rows: Vec<char>,
    inner: Vec<char>,
    columns: Vec<char>,
}

const FORM: &str = "only products of two factors are read, whose first letter is the batch where they depend on the \
                    input, such as bij,bjk->bik; write others as Transpose, Reshape and MatMul";

/// `Einsum`.
pub(super) fn einsum(node: &mut Node<'_>) -> Result<Value, Failure> {
    let equation: String = node.text_attribute("equation").chars().filter(|letter| *letter != ' ').collect();
    let Some((factors, result)) = equation.split_once("->") else { return unsupported(FORM) };
    let Some((left, right)) = factors.split_once(',') else { return unsupported(FORM) };
    let letters = |term: &str| -> Option<Vec<char>> {
        let letters: Vec<char> = term.chars().collect();
        let single = (0..letters.len()).all(|place| !letters[..place].contains(&letters[place]));
        (single && letters.iter().all(char::is_ascii_alphabetic)).then_some(letters)
    };
    let (Some(mut left), Some(mut right), Some(result)) = (letters(left), letters(right), letters(result))
    else {
        return unsupported(FORM);
    };
    let Some((&batch, wanted)) = result.split_first() else { return unsupported(FORM) };
    let (first, second) = match (node.input(0)?, node.input(1)?) {
        (Value::Activation(first), second @ (Value::Activation(_) | Value::Float(_))) => (first, second),
        (second @ Value::Float(_), Value::Activation(first)) => {
            std::mem::swap(&mut left, &mut right);
            (first, second)
        }
        _ => return unsupported(FORM),
    };
    // What is left are the axes of a sample.
    let own = |letters: &mut Vec<char>| {
        letters.first() == Some(&batch) && {
            letters.remove(0);
            true
        }
    };
    let second_shape = match &second {
        Value::Activation(second) if own(&mut right) => second.shape.clone(),
        Value::Float(constant) if !right.contains(&batch) => constant.shape().to_vec(),
        _ => return unsupported(FORM),
    };
    if !own(&mut left) || left.contains(&batch) || right.contains(&batch) || wanted.contains(&batch) {
        return unsupported(FORM);
    }
    let mut sizes: HashMap<char, usize> = HashMap::new();
    for (letters, shape) in [(&left, &first.shape), (&right, &second_shape)] {
        let fits = letters.len() == shape.len()
            && letters
                .iter()
                .zip(shape)
                .all(|(letter, size)| *sizes.entry(*letter).or_insert(*size) == *size);
        if !fits || shape.contains(&0) {
            return mismatch(
                node.name,
                format!("shapes that fit {equation}"),
                format!("{:?} and {second_shape:?}", first.shape),
            );
        }
    }
    let chosen = |from: &[char], keep: &dyn Fn(&char) -> bool| {
        from.iter().copied().filter(|letter| keep(letter)).collect()
    };
    let roles = Roles {
        groups: chosen(&left, &|letter| right.contains(letter) && wanted.contains(letter)),
        rows: chosen(&left, &|letter| !right.contains(letter)),
        inner: chosen(&left, &|letter| right.contains(letter) && !wanted.contains(letter)),
        columns: chosen(&right, &|letter| !left.contains(letter)),
    };
    let made = [&roles.groups[..], &roles.rows, &roles.columns].concat();
    if made.len() != wanted.len() || !made.iter().all(|letter| wanted.contains(letter)) {
        return unsupported(FORM);
    }
    let size =
        |letters: &[char]| constant::extent(&letters.iter().map(|letter| sizes[letter]).collect::<Vec<_>>());
    let [groups, rows, inner, columns] =
        [&roles.groups, &roles.rows, &roles.inner, &roles.columns].map(|letters| size(letters));
    let first = ordered(node, &first, &left, &[&roles.groups[..], &roles.rows, &roles.inner].concat())?;
    let order = [&roles.groups[..], &roles.inner, &roles.columns].concat();
    let shape: Vec<usize> = made.iter().map(|letter| sizes[letter]).collect();
    let product = match second {
        Value::Activation(second) => {
            let second = ordered(node, &second, &right, &order)?;
            let product = MatrixProduct { groups, rows, inner, columns };
            node.builder.matrix_product(product, [&first, &second], shape, node.budget, node.name)?
        }
        Value::Float(weights) => {
            node.budget.charge(weights.len(), node.name)?;
            let moved = weights.view().permuted_axes(IxDyn(&places(&right, &order)));
            let matrices = Array3::from_shape_vec((groups, inner, columns), moved.iter().copied().collect());
            let matrices = Erasing::new(matrices.expect("the sizes were compared"));
            let bias = Erasing::new(Array2::zeros((groups, columns)));
            first.multiplied_rows(node.builder, rows, (matrices, bias), shape, node.budget, node.name)?
        }
        _ => return unsupported(FORM),
    };
    Ok(Value::Activation(ordered(node, &product, &made, wanted)?))
}

/// Where each of `wanted` stands in `letters`.
fn places(letters: &[char], wanted: &[char]) -> Vec<usize> {
    wanted.iter().filter_map(|letter| letters.iter().position(|other| other == letter)).collect()
}

/// A value with its axes, called `letters`, in the order `wanted`.
fn ordered(
    node: &mut Node<'_>,
    value: &Activation,
    letters: &[char],
    wanted: &[char],
) -> Result<Activation, Failure> {
    let order = places(letters, wanted);
    let moved = order.iter().map(|&axis| value.shape[axis]).collect();
    let sources = layout::permuted(&value.shape, &order);
    node.builder.gathered(value, moved, &sources, node.budget, node.name)
}
