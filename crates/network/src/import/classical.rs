//! Linear classifiers and scalers of the operators of classical machine learning.

use ndarray::{Array1, Array2, s};

use super::{
    activation::Activation,
    node::Node,
    rectify,
    value::{Failure, Integer, Value, mismatch, normalise_axis, unsupported},
};
use crate::erase::Erasing;

/// The numbers `[batch, features]` that a classifier takes.
pub(super) fn features(node: &Node<'_>) -> Result<Activation, Failure> {
    match node.input(0)? {
        Value::Activation(activation) if activation.shape.len() == 1 => Ok(activation),
        Value::Activation(activation) => {
            let found = format!("{} dimensions", activation.shape.len() + 1);
            mismatch(node.name, "features of shape [batch, features]", found)
        }
        _ => unsupported("only applied to values that depend on the input"),
    }
}

/// `Scaler`: (x - offset) · scale.
pub(super) fn scaler(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = features(node)?;
    let parameter = |name: &str, default: f64| -> Result<Array1<f64>, Failure> {
        let given = node.floats_attribute(name)?;
        match given.len() {
            0 => Ok(Array1::from_elem(value.features(), default)),
            1 => Ok(Array1::from_elem(value.features(), given[0])),
            count if count == value.features() => Ok(Array1::from_vec(given)),
            count => {
                mismatch(node.name, format!("{} numbers of {name}", value.features()), format!("{count}"))
            }
        }
    };
    let scale = Erasing::new(parameter("scale", 1.0)?);
    let offset = Erasing::new(parameter("offset", 0.0)?);
    let shift = Erasing::new(-(&*offset * &*scale));
    Ok(Value::Activation(value.scaled(node.builder, &scale, &shift, node.budget, node.name)?))
}

/// `LinearClassifier`: a score for each class, in the order of its labels.
pub(super) fn linear_classifier(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = features(node)?;
    let coefficients = Erasing::new(Array1::from_vec(node.floats_attribute("coefficients")?));
    let count = value.features();
    let rows = coefficients.len() / count.max(1);
    if rows == 0 || rows * count != coefficients.len() {
        let expected = format!("coefficients for {count} features");
        return mismatch(node.name, expected, format!("{} of them", coefficients.len()));
    }
    let given = node.floats_attribute("intercepts")?;
    let intercepts = Erasing::new(match given.len() {
        0 => Array1::zeros(rows),
        found if found == rows => Array1::from_vec(given),
        found => return mismatch(node.name, format!("{rows} intercepts"), format!("{found}")),
    });
    // scikit-learn writes the logistic model of two classes as -s and s; its probability is that of s alone.
    let (first, second) = coefficients.as_slice().expect("a vector is contiguous").split_at(count);
    let opposite = rows == 2
        && first.iter().zip(second).all(|(first, second)| *first == -second)
        && intercepts[0] == -intercepts[1]
        && node.text_attribute("post_transform") == "LOGISTIC";
    let (skipped, rows) = if opposite { (1, 1) } else { (0, rows) };
    let weights = Array2::from_shape_fn((count, rows), |(feature, row)| {
        coefficients[(row + skipped) * count + feature]
    });
    let weights = Erasing::new(weights);
    let intercepts = Erasing::new(intercepts.slice(s![skipped..]).to_owned());
    let scores = value.multiplied(node.builder, weights, intercepts, vec![rows], node.budget, node.name)?;
    classified(node, scores, 0.0)
}

/// The scores of a classifier as what orders the classes: two for a single one, which speaks for the
/// second class where it is above `threshold`.
pub(super) fn classified(node: &mut Node<'_>, scores: Activation, threshold: f64) -> Result<Value, Failure> {
    let transform = node.text_attribute("post_transform");
    // All but the first two keep the order of the classes; the first two keep it trivially.
    if !matches!(transform.as_str(), "" | "NONE" | "SOFTMAX" | "LOGISTIC" | "SOFTMAX_ZERO" | "PROBIT") {
        return Err(node.broken(format!("post_transform is {transform}, which does not exist")).into());
    }
    if matches!(transform.as_str(), "SOFTMAX_ZERO" | "PROBIT") {
        return unsupported(format!("post_transform {transform} can change the order of the classes"));
    }
    let logits = if scores.features() == 1 {
        let shifted = scores.scaled(
            node.builder,
            &Array1::ones(1),
            &Array1::from_elem(1, -threshold),
            node.budget,
            node.name,
        )?;
        shifted.two_logits([0.0, 1.0], node.builder, node.budget)?
    } else {
        scores
    };
    Ok(Value::Scores { logits, source: node.index })
}

/// `ArrayFeatureExtractor` of columns: constant indices of the last dimension.
pub(super) fn columns(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = features(node)?;
    let indices = match node.input(1)? {
        Value::Integer(indices) => indices,
        _ => return unsupported("the columns must be constant"),
    };
    let mut places = Vec::with_capacity(indices.len());
    for index in indices.iter() {
        match index {
            Integer::Known(index) => places.push(Some(normalise_axis(*index, value.features(), node.name)?)),
            Integer::Batch => return unsupported("an index depends on the batch size"),
        }
    }
    if places.is_empty() {
        return mismatch(node.name, "at least one column", "none");
    }
    let shape = vec![places.len()];
    Ok(Value::Activation(node.builder.gathered(&value, shape, &places, node.budget, node.name)?))
}

/// `Imputer` of missing numbers, which no query holds: the inputs of a task are finite.
pub(super) fn imputer(node: &Node<'_>) -> Result<Value, Failure> {
    match node.optional_float_attribute("replaced_value_float") {
        Some(replaced) if replaced.is_nan() => Ok(Value::Activation(features(node)?)),
        _ => unsupported("replaces a number that queries can hold; fill in missing values before"),
    }
}

/// `Binarizer`: 1 for what is above the threshold, else 0.
pub(super) fn binarizer(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = features(node)?;
    let threshold = node.float_attribute("threshold", 0.0)?;
    Ok(Value::Activation(rectify::above(node, &value, threshold)?))
}

/// `Normalizer` of scores that are not negative, which keeps their order.
pub(super) fn normalizer(node: &Node<'_>) -> Result<Value, Failure> {
    match node.input(0)? {
        scores @ (Value::Scores { .. } | Value::Sigmoid { .. }) => Ok(scores),
        _ => unsupported("divides by a value that depends on the input; normalise the data before"),
    }
}
