//! Support vector machines with a linear kernel.
//!
//! With this kernel the sum over all support vectors is one product with weights, which the owner's side computes:
//! the servers see neither the vectors nor how many there are.

use ndarray::{Array1, Array2, s};

use super::{
    classical::features,
    node::Node,
    value::{Failure, Value, mismatch, unsupported},
};
use crate::{erase::Erasing, limits::MAXIMUM_CLASSES};

/// `SVMClassifier`: the votes of all pairs of classes, ties to the class that comes first, as ONNX Runtime chooses
/// its label.
pub(super) fn classifier(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = features(node)?;
    let kernel = node.text_attribute("kernel_type");
    if !matches!(kernel.as_str(), "" | "LINEAR") {
        return unsupported(format!(
            "kernel {kernel} needs every support vector for every query; use SVC(kernel='linear'), LinearSVC or \
             decision trees"
        ));
    }
    let transform = node.text_attribute("post_transform");
    if !matches!(transform.as_str(), "" | "NONE" | "SOFTMAX" | "LOGISTIC") {
        return unsupported(format!("post_transform {transform} can change the order of the classes"));
    }
    let counts = node.integers_attribute("vectors_per_class").unwrap_or_default();
    let coefficients = Erasing::new(Array1::from_vec(node.floats_attribute("coefficients")?));
    let rho = Erasing::new(Array1::from_vec(node.floats_attribute("rho")?));
    let names = node.integers_attribute("classlabels_ints").map_or(0, |labels| labels.len());
    let names = names.max(node.texts_attribute("classlabels_strings").len());
    let classes = if counts.is_empty() { names } else { counts.len() };
    if !(2..=MAXIMUM_CLASSES).contains(&classes) {
        return mismatch(node.name, format!("2 to {MAXIMUM_CLASSES} classes"), format!("{classes}"));
    }
    let size = value.features();
    if counts.is_empty() {
        // One row of weights for each class, one summand for all.
        if coefficients.len() != classes * size || rho.is_empty() {
            return mismatch(
                node.name,
                format!("{} coefficients", classes * size),
                format!("{}", coefficients.len()),
            );
        }
        let weights =
            Array2::from_shape_fn((size, classes), |(feature, class)| coefficients[class * size + feature]);
        let bias = Erasing::new(Array1::from_elem(classes, rho[0]));
        let shape = vec![classes];
        let logits =
            value.multiplied(node.builder, Erasing::new(weights), bias, shape, node.budget, node.name)?;
        return Ok(Value::Scores { logits, source: node.index });
    }
    let (weights, bias) = pairs(node, &counts, &coefficients, &rho, size)?;
    let probabilities = node.floats_attribute("prob_a")?;
    if !probabilities.is_empty() && classes > 2 {
        return unsupported(
            "its probabilities can contradict its labels; train it with SVC(probability=False)",
        );
    }
    let builder = &mut *node.builder;
    let count = bias.len();
    let decisions = value.multiplied(builder, weights, bias, vec![count], node.budget, node.name)?;
    if let [slope] = probabilities[..] {
        // The probability of the second class is the sigmoid of a line.
        let summand = node.floats_attribute("prob_b")?.first().copied().unwrap_or(0.0);
        let line = decisions.scaled(
            node.builder,
            &Array1::from_elem(1, slope),
            &Array1::from_elem(1, summand),
            node.budget,
            node.name,
        )?;
        let logits = line.two_logits([0.0, 1.0], node.builder, node.budget)?;
        return Ok(Value::Scores { logits, source: node.index });
    }
    if classes == 2 {
        let logits = decisions.two_logits([1.0, 0.0], node.builder, node.budget)?;
        return Ok(Value::Scores { logits, source: node.index });
    }
    // A decision above zero is a vote for the first class of the pair, so 1 stands for the second.
    let ones = Array1::from_elem(count, -1.0);
    let decisions = decisions.scaled(node.builder, &ones, &Array1::zeros(count), node.budget, node.name)?;
    let answers = node.builder.step(&decisions, node.budget, node.name)?;
    let mut votes = Erasing::new(Array2::zeros((count, classes)));
    // Less than a vote apart, so that of classes with as many votes the first one wins.
    let mut base: Array1<f64> = (0..classes).map(|class| -(class as f64) / (2 * classes) as f64).collect();
    for (pair, (first, second)) in all_pairs(classes).enumerate() {
        votes[(pair, first)] = -1.0;
        votes[(pair, second)] = 1.0;
        base[first] += 1.0;
    }
    let base = Erasing::new(base);
    let logits = answers.multiplied(node.builder, votes, base, vec![classes], node.budget, node.name)?;
    Ok(Value::Scores { logits, source: node.index })
}

/// All pairs of classes in the order of their decisions.
fn all_pairs(classes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..classes).flat_map(move |first| (first + 1..classes).map(move |second| (first, second)))
}

/// Weights `[features, pairs]` and summands of the decisions between two classes.
fn pairs(
    node: &mut Node<'_>,
    counts: &[i64],
    coefficients: &Array1<f64>,
    rho: &Array1<f64>,
    features: usize,
) -> Result<(Erasing<ndarray::Ix2>, Erasing<ndarray::Ix1>), Failure> {
    let classes = counts.len();
    let vectors = Erasing::new(Array1::from_vec(node.floats_attribute("support_vectors")?));
    let mut starts = vec![0_usize];
    for &count in counts {
        let count =
            usize::try_from(count).map_err(|_| node.broken("vectors_per_class holds a negative number"))?;
        starts.push(starts[starts.len() - 1].saturating_add(count));
    }
    let total = starts[classes];
    let count = classes * (classes - 1) / 2;
    let expected = [total.saturating_mul(features), total.saturating_mul(classes - 1), count];
    let found = [vectors.len(), coefficients.len(), rho.len()];
    if expected != found {
        return mismatch(
            node.name,
            format!(
                "{} numbers of support vectors, {} coefficients and {} of rho",
                expected[0], expected[1], expected[2]
            ),
            format!("{found:?}"),
        );
    }
    node.budget.charge_product(features, total.saturating_mul(classes - 1), 1, node.name)?;
    node.budget.charge(features.saturating_mul(count), node.name)?;
    let mut weights = Erasing::new(Array2::zeros((features, count)));
    for (pair, (first, second)) in all_pairs(classes).enumerate() {
        // The vectors of a class have a coefficient for each of the others.
        for (own, other) in [(first, second - 1), (second, first)] {
            for row in starts[own]..starts[own + 1] {
                let vector = vectors.slice(s![row * features..(row + 1) * features]);
                weights.column_mut(pair).scaled_add(coefficients[other * total + row], &vector);
            }
        }
    }
    Ok((weights, Erasing::new(rho.clone())))
}
