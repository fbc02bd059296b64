//! Level by level over all owners of an ensemble and all queries of a batch.
//!
//! All steps that wait for a rescaling are one batch, whoever they belong to, and so are all that
//! compare: see [`level`](concilium_network::program::level). Programs need not be alike.

use std::collections::BTreeMap;
use std::rc::Rc;

use concilium_mpc::conversion::sum_bits;
use concilium_mpc::linear::{SharedMatrix, rescale};
use concilium_mpc::release::Aggregate;
use concilium_mpc::shares::AdditiveShare;
use concilium_mpc::{Channel, MpcError, Party, PartyIndex, Shares, Stage, comparison, probability, votes};
use concilium_network::program::{MatrixProduct, Messages, Operation, evaluate};
use concilium_ring::{Element, Z64};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Zip, s};

use crate::ensemble::Ensemble;
use crate::model::{SharedModel, SharedWeights};
use crate::ring::RingElement;
use crate::value::{Value, join};
use crate::windows;

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
pub fn histogram<E: RingElement, C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble<E>,
    input: &Shares<E>,
) -> Result<Aggregate<Z64>, MpcError> {
    let queries = input.dim().0;
    let logits = logits(party, ensemble, input)?;
    let dealer = dealer_of(deepest(ensemble));
    party.enter(Stage::Votes);
    let winners = votes::one_hot_argmax(party, dealer, &logits, ensemble.final_width())?;
    sum_bits(party, dealer, &winners, ensemble.len(), queries)
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
    ensemble: &Ensemble<Z64>,
    input: &Shares<Z64>,
) -> Result<Aggregate<Z64>, MpcError> {
    let queries = input.dim().0;
    let logits = logits(party, ensemble, input)?;
    let dealer = dealer_of(deepest(ensemble));
    party.enter(Stage::Probabilities);
    let (window, bits) = (ensemble.final_width(), ensemble.fractional_bits());
    probability::sum_of_probabilities(party, dealer, &logits, window, bits, ensemble.len(), queries)
}

/// The logits of every model for every query, `[models * queries, classes]`: row `o * queries + q`
/// is model o on query q. They are right modulo 2 to the
/// [known bits](concilium_network::Precision::known_bits), which the votes look at.
///
/// # Cost
/// For the deepest program, one round for each level of rescalings and the rounds of sign and selection
/// for each level of comparisons, less one that coincides with the rescaling before it. Independent of
/// owners and queries.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
pub fn logits<E: RingElement, C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble<E>,
    input: &Shares<E>,
) -> Result<Shares<E>, MpcError> {
    run(party, ensemble, input, None)
}

/// As [`logits`], showing every step's result to `observe(step, owner, values)`: an owner that
/// runs all three parties on its own model compares step by step with the plaintext. Values are right modulo
/// 2 to the [known bits](concilium_network::Precision::known_bits).
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If the input has another number of features than the ensemble.
pub fn logits_observed<E: RingElement, C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble<E>,
    input: &Shares<E>,
    mut observe: impl FnMut(usize, usize, &Shares<E>),
) -> Result<Shares<E>, MpcError> {
    run(party, ensemble, input, Some(&mut observe))
}

/// Sees a step's position, the model's position and its values.
type Observer<'a, E> = &'a mut dyn FnMut(usize, usize, &Shares<E>);

fn run<E: RingElement, C: Channel>(
    party: &mut Party<C>,
    ensemble: &Ensemble<E>,
    input: &Shares<E>,
    mut observe: Option<Observer<'_, E>>,
) -> Result<Shares<E>, MpcError> {
    assert_eq!(input.dim().1, ensemble.features(), "the input has another number of features");
    let whole = Value::whole(Rc::new(input.columns(std::slice::from_ref(&(0..ensemble.features())))));
    let mut owners: Vec<_> = ensemble.models().iter().map(|model| Owner::new(model, whole.clone())).collect();
    drop(whole);
    for level in 0..=deepest(ensemble) {
        let mut batch = Vec::new();
        for (owner, state) in owners.iter().enumerate() {
            batch.extend(state.steps_on(level).map(|step| (owner, step)));
        }
        if !batch.is_empty() {
            let results = if level % 2 == 1 {
                party.enter(Stage::Linear(layer_number(level)));
                let results =
                    rescale_batch(party, dealer_of(level), &owners, &batch, ensemble.fractional_bits())?;
                batch.iter().for_each(|(owner, step)| drop(owners[*owner].hinges.remove(step)));
                results
            } else {
                compare_batch(party, level, &owners, &batch, ensemble.fractional_bits())?
            };
            for ((owner, step), result) in batch.into_iter().zip(results) {
                if owners[owner].model.levels()[step] == level {
                    finish(&mut owners, owner, step, result, &mut observe);
                } else {
                    owners[owner].hinges.insert(step, result);
                }
            }
        }
        for owner in 0..owners.len() {
            for step in owners[owner].local_steps_on(level).collect::<Vec<_>>() {
                let result = owners[owner].local(step);
                finish(&mut owners, owner, step, result, &mut observe);
            }
        }
    }
    let logits: Vec<_> = owners.into_iter().map(Owner::into_logits).collect();
    Ok(Shares::stack(&logits))
}

/// Shows a step's result and keeps it.
fn finish<E: RingElement>(
    owners: &mut [Owner<'_, E>],
    owner: usize,
    step: usize,
    result: Value<E>,
    observe: &mut Option<Observer<'_, E>>,
) {
    if let Some(observe) = observe {
        observe(step, owner, &result.to_shares());
    }
    owners[owner].finish(step, result);
}

/// One model under way.
struct Owner<'a, E: RingElement> {
    model: &'a SharedModel<E>,
    /// By step, what functions have selected and not yet added up.
    hinges: BTreeMap<usize, Value<E>>,
    /// The values that are still needed.
    values: Vec<Option<Value<E>>>,
    /// How often each value is still needed.
    left: Vec<usize>,
}

impl<'a, E: RingElement> Owner<'a, E> {
    fn new(model: &'a SharedModel<E>, input: Value<E>) -> Self {
        let mut values = vec![None; model.levels().len() + 1];
        values[0] = Some(input);
        Owner { model, values, left: model.uses().to_vec(), hinges: BTreeMap::new() }
    }

    /// The steps that exchange messages on a level, in order. A function does on two: it compares on the
    /// level before its own.
    fn steps_on(&self, level: usize) -> impl Iterator<Item = usize> {
        self.all(move |messages, own| match messages {
            Messages::None => false,
            Messages::ComparisonAndRescaling => own == level || own == level + 1,
            Messages::Rescaling | Messages::Comparison => own == level,
        })
    }

    /// The steps on a level that exchange none, in order.
    fn local_steps_on(&self, level: usize) -> impl Iterator<Item = usize> {
        self.all(move |messages, own| messages == Messages::None && own == level)
    }

    fn all(&self, wanted: impl Fn(Messages, usize) -> bool) -> impl Iterator<Item = usize> {
        let steps = self.model.architecture().steps.iter().zip(self.model.levels()).enumerate();
        steps
            .filter(move |(_, (step, level))| wanted(step.operation.messages(), **level))
            .map(|(step, _)| step)
    }

    fn operation(&self, step: usize) -> &'a Operation {
        &self.model.architecture().steps[step].operation
    }

    /// The result of a step without messages: the same on each component.
    fn local(&self, step: usize) -> Value<E> {
        let count = self.model.architecture().steps[step].inputs.len();
        let apply = |component: fn(&Value<E>) -> ArrayView2<'_, E>, summands: Option<ArrayView2<'_, E>>| {
            let views: Vec<_> = (0..count).map(|place| component(self.taken(step, place))).collect();
            match (self.operation(step), summands) {
                (Operation::Shift { positions, .. }, Some(summands)) => {
                    evaluate::shift(views[0], &summands.row(0).to_vec(), *positions)
                }
                (Operation::Gather(gather), _) => windows::gather(gather, &views),
                (operation, _) => evaluate::linear(operation, &views).expect("the others exchange messages"),
            }
        };
        let summands = match self.model.weights(step) {
            Some(SharedWeights::Shift(summands)) => Some(summands),
            _ => None,
        };
        let own = apply(Value::own, summands.map(Shares::own));
        let next = apply(Value::next, summands.map(Shares::next));
        Value::whole(Rc::new(Shares::new(own, next)))
    }

    /// Value number `place` among those that a step takes.
    fn taken(&self, step: usize, place: usize) -> &Value<E> {
        let value = self.model.architecture().steps[step].inputs[place];
        self.values[value].as_ref().expect("a value is kept until its last use")
    }

    /// Keeps a result, and frees what was needed for the last time.
    fn finish(&mut self, step: usize, result: Value<E>) {
        self.values[step + 1] = Some(result);
        for &value in &self.model.architecture().steps[step].inputs {
            self.left[value] -= 1;
            if self.left[value] == 0 {
                self.values[value] = None;
            }
        }
        if self.left[step + 1] == 0 {
            self.values[step + 1] = None;
        }
    }

    fn into_logits(mut self) -> Shares<E> {
        self.values.pop().flatten().expect("the last value is never freed").to_shares()
    }
}

/// The products and biases of all steps in `batch`, and one rescaling.
fn rescale_batch<E: RingElement, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    owners: &[Owner<'_, E>],
    batch: &[(usize, usize)],
    fractional_bits: u32,
) -> Result<Vec<Value<E>>, MpcError> {
    let rows = owners[batch[0].0].taken(batch[0].1, 0).rows();
    let size = |&(owner, step): &(usize, usize)| {
        let owner: &Owner<'_, E> = &owners[owner];
        match owner.operation(step) {
            Operation::MatrixProduct(product) => product.sizes()[2],
            operation => {
                operation.affine().map_or_else(|| owner.taken(step, 0).columns(), |affine| affine.outputs())
            }
        }
    };
    let sizes: Vec<usize> = batch.iter().map(size).collect();
    let mut terms = AdditiveShare::zeros(rows, sizes.iter().sum());
    let mut bounds = Vec::with_capacity(terms.dim().1);
    for (&(owner, step), &size) in batch.iter().zip(&sizes) {
        let (owner, columns) = (&owners[owner], bounds.len()..bounds.len() + size);
        let out = terms.terms_mut().slice_mut(s![.., columns.clone()]);
        let value = owner.taken(step, 0);
        match (owner.model.weights(step), owner.operation(step)) {
            (Some(SharedWeights::Affine(affine)), _) => affine.add_terms(value.own(), value.next(), out),
            (_, Operation::Function(function)) => {
                let hinges = owner.hinges.get(&step).expect("a function compares before it is rescaled");
                let pieces = function.pieces(fractional_bits);
                // One server adds the constant.
                let start = if party.index() == PartyIndex::ALL[0] { pieces.start } else { 0 };
                add_pieces(hinges.own(), &pieces.changes, start, out);
            }
            (_, Operation::MatrixProduct(product)) => {
                add_matrix_products(product, value, owner.taken(step, 1), out);
            }
            _ => add_products(value, owner.taken(step, 1), out),
        }
        let bound = owner.model.architecture().steps[step].bound_bits;
        bounds.resize(columns.end, bound.expect("validated architectures bound what is rescaled"));
    }
    let rescaled = rescale(party, dealer, terms, &bounds, fractional_bits)?;
    Ok(Value::split(Rc::new(rescaled), &sizes))
}

/// Adds this server's term of the products of two values to `out`: x_i y_i + x_i y_{i+1} + x_{i+1} y_i.
fn add_products<E: RingElement>(left: &Value<E>, right: &Value<E>, out: ArrayViewMut2<'_, E>) {
    let (x, y) = (left, right);
    Zip::from(out).and(x.own()).and(x.next()).and(y.own()).and(y.next()).for_each(
        |term, &x_own, &x_next, &y_own, &y_next| *term += x_own * (y_own + y_next) + x_next * y_own,
    );
}

/// Adds this server's term of the products of matrices, the same with sums over the inner dimension.
fn add_matrix_products<E: RingElement>(
    product: &MatrixProduct,
    left: &Value<E>,
    right: &Value<E>,
    mut out: ArrayViewMut2<'_, E>,
) {
    for row in 0..left.rows() {
        for group in 0..product.groups {
            let [left_at, right_at, (start, [rows, columns])] = product.matrices(group);
            let matrix = |component: ArrayView2<'_, E>, (start, [rows, columns]): (usize, [usize; 2])| {
                let numbers = component.slice(s![row, start..start + rows * columns]).to_vec();
                Array2::from_shape_vec((rows, columns), numbers).expect("the sizes were checked")
            };
            let shared = Shares::new(matrix(right.own(), right_at), matrix(right.next(), right_at));
            let value = Shares::new(matrix(left.own(), left_at), matrix(left.next(), left_at));
            let mut terms = AdditiveShare::zeros(rows, columns);
            SharedMatrix::new(shared.own(), shared.next()).multiply_add(
                value.own(),
                value.next(),
                terms.terms_mut().view_mut(),
            );
            let mut target = out.slice_mut(s![row, start..start + rows * columns]);
            target.iter_mut().zip(terms.terms_mut().iter()).for_each(|(target, &term)| *target += term);
        }
    }
}

/// Adds this server's term of a function: a constant, and what was selected at each knot times a public
/// number.
fn add_pieces<E: RingElement>(
    hinges: ArrayView2<'_, E>,
    changes: &[i64],
    start: i64,
    mut out: ArrayViewMut2<'_, E>,
) {
    let start = E::from_signed(start);
    out.mapv_inplace(|term| term + start);
    let size = out.ncols();
    for (knot, &change) in changes.iter().enumerate() {
        let selected = hinges.slice(s![.., knot * size..(knot + 1) * size]);
        let change = E::from_signed(change);
        out.zip_mut_with(&selected, |term, &selected| *term += change * selected);
    }
}

/// One comparison and one selection for all steps in `batch`.
fn compare_batch<E: RingElement, C: Channel>(
    party: &mut Party<C>,
    level: usize,
    owners: &[Owner<'_, E>],
    batch: &[(usize, usize)],
    fractional_bits: u32,
) -> Result<Vec<Value<E>>, MpcError> {
    let mut window = 2;
    let mut compared = Vec::with_capacity(batch.len());
    for &(owner, step) in batch {
        let owner = &owners[owner];
        let bits = owner.model.architecture().steps[step].window;
        window = window.max(bits.expect("validated architectures have windows where they compare"));
        compared.push(match owner.operation(step) {
            // max(x, y) = y + max(x - y, 0).
            Operation::Maximum => {
                combine(owner.taken(step, 0), owner.taken(step, 1), |left, right| *left -= right)
            }
            Operation::Function(function) => {
                spread(party.index(), owner.taken(step, 0), &function.pieces(fractional_bits).knots)
            }
            _ => owner.taken(step, 0).clone(),
        });
    }
    let values = join(&compared);
    // All is dealt by whoever dealt the rescaling, in its round: the dealer knows its components of each
    // result without having received anything.
    let dealer = dealer_of(level);
    party.enter(Stage::Comparison(layer_number(level)));
    let negative = comparison::sign(party, dealer, &values, window)?;
    party.enter(Stage::Selection(layer_number(level)));
    let steps = batch.iter().any(|&(owner, step)| *owners[owner].operation(step) == Operation::Step);
    let answers = steps.then(|| {
        let one = E::from_signed(1 << fractional_bits);
        let answer = |(&(owner, step), value): (&(usize, usize), &Value<E>)| {
            if *owners[owner].operation(step) != Operation::Step {
                return value.clone();
            }
            let ones = Array2::from_elem((value.rows(), value.columns()), one);
            Value::whole(Rc::new(Shares::of_public(party.index(), ones)))
        };
        join(&batch.iter().zip(&compared).map(answer).collect::<Vec<_>>())
    });
    let choices = answers.as_ref().unwrap_or(&values);
    let selected = E::select_unless(party, dealer, &negative, choices, fractional_bits)?;
    let sizes: Vec<usize> = compared.iter().map(Value::columns).collect();
    let results = Value::split(Rc::new(selected), &sizes);
    let finished = results.into_iter().zip(batch).map(|(result, &(owner, step))| {
        let owner = &owners[owner];
        match owner.operation(step) {
            Operation::Maximum => combine(&result, owner.taken(step, 1), |left, right| *left += right),
            _ => result,
        }
    });
    Ok(finished.collect())
}

/// One value, with each component changed by `function` according to another value's.
fn combine<E: RingElement>(
    left: &Value<E>,
    right: &Value<E>,
    function: impl Fn(&mut Array2<E>, &ArrayView2<'_, E>),
) -> Value<E> {
    let (mut own, mut next) = (left.own().to_owned(), left.next().to_owned());
    function(&mut own, &right.own());
    function(&mut next, &right.next());
    Value::whole(Rc::new(Shares::new(own, next)))
}

/// A value minus each of some public numbers, which component 0 takes up at both of its holders.
fn spread<E: RingElement>(server: PartyIndex, value: &Value<E>, knots: &[i64]) -> Value<E> {
    let negated: Vec<E> = knots.iter().map(|&knot| E::from_signed(-knot)).collect();
    let zeros = vec![<E as Element>::ZERO; knots.len()];
    let [own, next] = match server.number() {
        0 => [&negated, &zeros],
        1 => [&zeros, &zeros],
        _ => [&zeros, &negated],
    };
    let (own, next) = (evaluate::spread(value.own(), own), evaluate::spread(value.next(), next));
    Value::whole(Rc::new(Shares::new(own, next)))
}

/// The dealer's role goes round with the layers, so that the servers send about the same.
fn dealer_of(level: usize) -> PartyIndex {
    PartyIndex::in_turn(level.saturating_sub(1) / 2)
}

/// The number by which people call a layer: a rescaling and the comparison after it have the same.
fn layer_number(level: usize) -> u32 {
    (level as u32).div_ceil(2)
}

/// The highest level of any model.
fn deepest<E: RingElement>(ensemble: &Ensemble<E>) -> usize {
    ensemble.models().iter().flat_map(|model| model.levels().iter().copied()).max().unwrap_or(0)
}
