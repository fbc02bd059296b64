//! Layer by layer over all owners of an ensemble and all queries of a batch.

use std::ops::Range;

use concilium_mpc::conversion::sum_bits;
use concilium_mpc::linear::rescale;
use concilium_mpc::release::Aggregate;
use concilium_mpc::shares::AdditiveShare;
use concilium_mpc::{
    Channel, MpcError, Party, PartyIndex, Shares, Stage, comparison, probability, selection, votes,
};
use concilium_ring::Z64;
use ndarray::s;

use crate::ensemble::Ensemble;
use crate::model::SharedLayer;

/// The histogram of the owners' votes for every query: element (q, c) is the number of models
/// whose largest logit for query q is that of class c. Each model has at most one vote a query,
/// whatever its weights are.
///
/// `input` is `[queries, features]` at the ensemble's scale.
///
/// # Cost
/// The rounds of [`logits`], of [one-hot argmax](votes::one_hot_argmax) less one that coincides
/// with the last rescaling, and of [`sum_bits`]. Independent of owners and queries.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
pub fn histogram<C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble,
    input: &Shares<Z64>,
) -> Result<Aggregate<Z64>, MpcError> {
    let queries = input.dim().0;
    let logits = logits(party, ensemble, input)?;
    let dealer = dealer_of_layer(longest(ensemble) - 1);
    party.enter(Stage::Votes);
    let winners = votes::one_hot_argmax(party, dealer, &logits, ensemble.final_width())?;
    sum_bits(party, dealer.next(), &winners, ensemble.len(), queries)
}

/// The sum of the models' probabilities for every query: element (q, c) is the sum over all models of
/// the softmax of their logits for query q at class c, with
/// [`FRACTION_BITS`](probability::FRACTION_BITS). Each model adds a vector without a negative entry
/// that sums to at most one, whatever its weights are.
///
/// `input` is `[queries, features]` at the ensemble's scale.
///
/// # Cost
/// The rounds of [`logits`] and of [`probability::sum_of_probabilities`], less one that coincides with
/// the last rescaling. Independent of owners and queries.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
pub fn probabilities<C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble,
    input: &Shares<Z64>,
) -> Result<Aggregate<Z64>, MpcError> {
    let queries = input.dim().0;
    let logits = logits(party, ensemble, input)?;
    let dealer = dealer_of_layer(longest(ensemble) - 1);
    party.enter(Stage::Probabilities);
    let (window, bits) = (ensemble.final_width(), ensemble.fractional_bits());
    probability::sum_of_probabilities(party, dealer, &logits, window, bits, ensemble.len(), queries)
}

/// The logits of every model for every query, `[models * queries, classes]`: row `o * queries + q`
/// is model o on query q.
///
/// # Cost
/// One round for each affine layer and the rounds of sign and selection for each ReLU layer, less
/// one each that coincides with the rescaling before it. Independent of owners and queries.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
pub fn logits<C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble,
    input: &Shares<Z64>,
) -> Result<Shares<Z64>, MpcError> {
    evaluate(party, ensemble, input, None)
}

/// As [`logits`], showing every layer's result to `observe(layer, owner, values)`: an owner that
/// runs all three parties on its own model compares layer by layer with the plaintext.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If the input has another number of features than the ensemble.
pub fn logits_observed<C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble,
    input: &Shares<Z64>,
    mut observe: impl FnMut(usize, usize, &Shares<Z64>),
) -> Result<Shares<Z64>, MpcError> {
    evaluate(party, ensemble, input, Some(&mut observe))
}

/// A model's position and the columns of the current values that are its.
type Active = (usize, Range<usize>);

/// Sees a layer's position, the model's position and its values.
type Observer<'a> = &'a mut dyn FnMut(usize, usize, &Shares<Z64>);

fn evaluate<C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble,
    input: &Shares<Z64>,
    mut observe: Option<Observer<'_>>,
) -> Result<Shares<Z64>, MpcError> {
    assert_eq!(input.dim().1, ensemble.features(), "the input has another number of features");
    let mut results: Vec<Option<Shares<Z64>>> = ensemble.models().iter().map(|_| None).collect();
    // Models that still have layers, with the columns of `values` that are theirs.
    let mut active: Vec<Active> = (0..ensemble.len()).map(|owner| (owner, 0..ensemble.features())).collect();
    let mut values: Option<Shares<Z64>> = None;
    for position in 0..longest(ensemble) {
        let current = values.as_ref().unwrap_or(input);
        let next = if position % 2 == 0 {
            party.enter(Stage::Linear(layer_number(position)));
            let (next, columns) = affine_layer(party, ensemble, position, current, &active)?;
            active.iter_mut().zip(columns).for_each(|((_, old), new)| *old = new);
            next
        } else {
            relu_layer(party, ensemble, position, current, &active)?
        };
        if let Some(observe) = &mut observe {
            active.iter().for_each(|(owner, columns)| {
                observe(position, *owner, &next.columns(std::slice::from_ref(columns)));
            });
        }
        let layers = |owner: usize| ensemble.models()[owner].layers().len();
        let (ended, going_on): (Vec<_>, Vec<_>) =
            active.into_iter().partition(|(owner, _)| layers(*owner) == position + 1);
        for (owner, columns) in &ended {
            results[*owner] = Some(next.columns(std::slice::from_ref(columns)));
        }
        (active, values) = if ended.is_empty() { (going_on, Some(next)) } else { compact(&next, going_on) };
    }
    let results: Vec<_> = results.into_iter().flatten().collect();
    Ok(Shares::stack(&results))
}

/// Keeps the columns of models that go on, so that nothing is computed for those that have ended.
fn compact(values: &Shares<Z64>, active: Vec<Active>) -> (Vec<Active>, Option<Shares<Z64>>) {
    let ranges: Vec<_> = active.iter().map(|(_, columns)| columns.clone()).collect();
    let kept = values.columns(&ranges);
    let mut start = 0;
    let moved = active.into_iter().map(|(owner, columns)| {
        let first = start;
        start += columns.len();
        (owner, first..start)
    });
    (moved.collect(), Some(kept))
}

/// One product, bias and rescaling for all active models. Returns the results side by side and each
/// model's columns of them.
fn affine_layer<C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble,
    position: usize,
    values: &Shares<Z64>,
    active: &[Active],
) -> Result<(Shares<Z64>, Vec<Range<usize>>), MpcError> {
    let layers: Vec<_> = active
        .iter()
        .map(|(owner, inputs)| match &ensemble.models()[*owner].layers()[position] {
            SharedLayer::Affine { weights, bias, bound_bits } => (inputs, weights, bias, *bound_bits),
            SharedLayer::Relu { .. } => {
                unreachable!("validated architectures have affine layers at even places")
            }
        })
        .collect();
    let total = layers.iter().map(|(_, weights, ..)| weights.columns()).sum();
    let mut terms = AdditiveShare::zeros(values.dim().0, total);
    let mut columns = Vec::with_capacity(layers.len());
    let mut bounds = Vec::with_capacity(total);
    for (inputs, weights, bias, bound_bits) in layers {
        let outputs = bounds.len()..bounds.len() + weights.columns();
        let mut out = terms.terms_mut().slice_mut(s![.., outputs.clone()]);
        out += &bias.broadcast(out.dim()).expect("one bias for each column");
        let range = s![.., inputs.clone()];
        weights.multiply_add(values.own().slice(range), values.next().slice(range), out);
        bounds.resize(outputs.end, bound_bits);
        columns.push(outputs);
    }
    let dealer = dealer_of_layer(position);
    let rescaled = rescale(party, dealer, terms, &bounds, ensemble.fractional_bits())?;
    Ok((rescaled, columns))
}

/// One comparison and one selection for all active models.
fn relu_layer<C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble,
    position: usize,
    values: &Shares<Z64>,
    active: &[Active],
) -> Result<Shares<Z64>, MpcError> {
    let width = |(owner, _): &Active| match ensemble.models()[*owner].layers()[position] {
        SharedLayer::Relu { width } => width,
        SharedLayer::Affine { .. } => unreachable!("validated architectures have ReLU at odd places"),
    };
    let window = active.iter().map(width).max().unwrap_or(2);
    // The comparison is dealt by whoever dealt the rescaling, so that its first message shares the
    // rescaling's round; the selection, which costs its dealer most, by the next server.
    let dealer = dealer_of_layer(position - 1);
    party.enter(Stage::Comparison(layer_number(position)));
    let negative = comparison::sign(party, dealer, values, window)?;
    party.enter(Stage::Selection(layer_number(position)));
    selection::select_unless(party, dealer.next(), &negative, values)
}

/// The dealer's role goes round with the affine layers, so that the servers send about the same.
fn dealer_of_layer(position: usize) -> PartyIndex {
    PartyIndex::in_turn(position / 2)
}

/// The number by which people call a layer: an affine layer and the ReLU after it have the same.
fn layer_number(position: usize) -> u32 {
    position as u32 / 2 + 1
}

/// Layers of the deepest model.
fn longest(ensemble: &Ensemble) -> usize {
    ensemble.models().iter().map(|model| model.layers().len()).max().unwrap_or(0)
}
