//! The program that the nodes add up to.

use ndarray::{Array1, Array2, Array3, Axis, Ix1, Ix3};

use super::{
    ImportError,
    activation::{Activation, Map, Pending, check_size, uniform},
    budget::Budget,
    error::escaped,
    value::{Failure, unsupported},
};
use crate::{
    erase::Erasing,
    limits::MAXIMUM_STEPS,
    model::Step,
    program::{Convolution, Function, Gather, MatrixProduct, Operation, Piece, Weights, gather},
};

/// The steps so far.
#[derive(Default)]
pub(super) struct Builder(Vec<Step>);

impl Builder {
    /// The numbers of `activation` as a value of the program.
    pub(super) fn value(
        &mut self,
        activation: &Activation,
        budget: &mut Budget,
    ) -> Result<usize, ImportError> {
        let Pending { base, map, name, made } = &*activation.pending;
        if let Some(value) = made.get() {
            return Ok(value);
        }
        let step = match map {
            Map::Identity => {
                made.set(Some(*base));
                return Ok(*base);
            }
            Map::Dense { weights, bias } => {
                budget.charge(weights.len() + bias.len(), name)?;
                Step::dense(name, *base, (**weights).clone(), (**bias).clone())
            }
            Map::Rows { rows, matrices, bias } => {
                let value = self.rows(*base, *rows, matrices, bias, name, budget)?;
                made.set(Some(value));
                return Ok(value);
            }
            Map::Windows { convolution, matrices, bias } => {
                budget.charge(matrices.len() + bias.len(), name)?;
                Step {
                    name: name.clone(),
                    inputs: vec![*base],
                    operation: Operation::Convolution(*convolution),
                    weights: Some(Weights { matrices: (**matrices).clone(), bias: (**bias).clone() }),
                }
            }
            Map::Diagonal { scale, shift } => {
                // A summand, and a change of sign, need no product.
                let negated = scale.iter().all(|&factor| factor == -1.0);
                if negated || scale.iter().all(|&factor| factor == 1.0) {
                    let mut value = *base;
                    if negated {
                        value = self.combine(&[value], &[-1], name)?;
                    }
                    if negated && shift.iter().all(|&summand| summand == 0.0) {
                        made.set(Some(value));
                        return Ok(value);
                    }
                    shifted(activation, value, name, shift, budget)?
                } else {
                    per_channel(activation, *base, name, scale, shift, budget)?
                }
            }
        };
        let value = self.push(step)?;
        made.set(Some(value));
        Ok(value)
    }

    /// Rows times matrices: windows of one row each, whose results stand one channel after the other and are
    /// put in order without messages.
    fn rows(
        &mut self,
        base: usize,
        rows: usize,
        matrices: &Array3<f64>,
        bias: &Array2<f64>,
        name: &str,
        budget: &mut Budget,
    ) -> Result<usize, ImportError> {
        let (groups, inner, outer) = matrices.dim();
        check_size(groups * rows * inner)?;
        budget.charge(matrices.len() + bias.len(), name)?;
        let convolution = Convolution {
            channels: [groups, groups * outer],
            groups,
            size: [rows, inner],
            kernel: [1, inner],
            strides: [1; 2],
            dilations: [1; 2],
            pads: [0; 4],
        };
        let value = self.push(Step {
            name: name.to_owned(),
            inputs: vec![base],
            operation: Operation::Convolution(convolution),
            weights: Some(Weights { matrices: matrices.clone(), bias: bias.iter().copied().collect() }),
        })?;
        if rows == 1 || outer == 1 {
            return Ok(value);
        }
        let axes = [(groups, outer * rows), (rows, 1), (outer, rows)];
        let axes = axes.map(|(count, stride)| gather::Axis::Regular(count, stride as i64)).to_vec();
        let pieces = vec![Piece { value: 0, offset: 0, axes }];
        self.push(Step::plain(name, vec![value], Operation::Gather(Gather { pieces })))
    }

    fn combine(&mut self, values: &[usize], coefficients: &[i64], name: &str) -> Result<usize, ImportError> {
        let operation = Operation::Combine { coefficients: coefficients.to_vec() };
        self.push(Step::plain(name, values.to_vec(), operation))
    }

    /// `activation` as the result of a step, so that several steps that take it share it.
    pub(super) fn computed(
        &mut self,
        activation: &Activation,
        budget: &mut Budget,
    ) -> Result<Activation, ImportError> {
        let value = self.value(activation, budget)?;
        Ok(Activation::of_value(value, activation.shape.clone()))
    }

    /// The values of `activations`, of one shape, each times an integer, added up.
    pub(super) fn sum(
        &mut self,
        activations: &[&Activation],
        coefficients: &[i64],
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        let values = activations
            .iter()
            .map(|activation| self.value(activation, budget))
            .collect::<Result<Vec<_>, _>>()?;
        let value = self.combine(&values, coefficients, &escaped(node))?;
        Ok(Activation::of_value(value, activations[0].shape.clone()))
    }

    /// A step on two values of one shape that has no weights.
    pub(super) fn pairwise(
        &mut self,
        operation: Operation,
        [left, right]: [&Activation; 2],
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        let values = vec![self.value(left, budget)?, self.value(right, budget)?];
        let value = self.push(Step::plain(&escaped(node), values, operation))?;
        Ok(Activation::of_value(value, left.shape.clone()))
    }

    /// The products of the matrices of two values, of shape `shape`.
    pub(super) fn matrix_product(
        &mut self,
        product: MatrixProduct,
        [left, right]: [&Activation; 2],
        shape: Vec<usize>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        check_size(shape.iter().product())?;
        let values = vec![self.value(left, budget)?, self.value(right, budget)?];
        let value = self.push(Step::plain(&escaped(node), values, Operation::MatrixProduct(product)))?;
        Ok(Activation::of_value(value, shape))
    }

    /// The sum of each window of each channel of `activation`, of shape `shape`.
    pub(super) fn window_sums(
        &mut self,
        activation: &Activation,
        windows: Convolution,
        shape: Vec<usize>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        let inputs = vec![self.value(activation, budget)?];
        let value = self.push(Step::plain(&escaped(node), inputs, Operation::Sum(windows)))?;
        Ok(Activation::of_value(value, shape))
    }

    /// What `activation` is the ReLU of, when it is one.
    pub(super) fn before_relu(&self, activation: &Activation) -> Option<Activation> {
        let (Map::Identity, Some(step)) = (activation.composed().1, activation.composed().0.checked_sub(1))
        else {
            return None;
        };
        let step = &self.0[step];
        let rectified = step.operation == Operation::Relu;
        rectified.then(|| Activation::of_value(step.inputs[0], activation.shape.clone()))
    }

    /// Numbers of several values: the pieces one after the other, of shape `shape`.
    pub(super) fn joined(
        &mut self,
        activations: &[Activation],
        pieces: Vec<Piece>,
        shape: Vec<usize>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        check_size(shape.iter().product())?;
        let inputs = activations
            .iter()
            .map(|activation| self.value(activation, budget))
            .collect::<Result<Vec<_>, _>>()?;
        let value = self.push(Step::plain(&escaped(node), inputs, Operation::Gather(Gather { pieces })))?;
        Ok(Activation::of_value(value, shape))
    }

    /// Zeros of shape `shape`, one for each sample of `activation`.
    pub(super) fn zeros(
        &mut self,
        activation: &Activation,
        shape: Vec<usize>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        let count = shape.iter().copied().fold(1, usize::saturating_mul);
        check_size(count)?;
        budget.charge(count, node)?;
        let axes = vec![gather::Axis::Listed(vec![None; count])];
        let piece = Piece { value: 0, offset: 0, axes };
        self.joined(std::slice::from_ref(activation), vec![piece], shape, budget, node)
    }

    /// The numbers of `activation` at `places`, `None` for zero, in row-major order of `shape`.
    ///
    /// What has not become a step is gathered itself, so that later maps still compose with it.
    pub(super) fn gathered(
        &mut self,
        activation: &Activation,
        shape: Vec<usize>,
        places: &[Option<usize>],
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, Failure> {
        check_size(places.len())?;
        budget.charge(places.len(), node)?;
        if places.iter().copied().eq((0..activation.features()).map(Some)) {
            return Ok(activation.reshaped(shape));
        }
        let pick = |values: &Array1<f64>, otherwise: f64| -> Array1<f64> {
            places.iter().map(|place| place.map_or(otherwise, |place| values[place])).collect()
        };
        let (base, map) = activation.composed();
        match map {
            Map::Dense { weights, bias } if places.len() <= bias.len() => {
                budget.charge(weights.nrows().saturating_mul(places.len()), node)?;
                let mut columns = Erasing::new(Array2::zeros((weights.nrows(), places.len())));
                for (mut column, place) in columns.columns_mut().into_iter().zip(places) {
                    if let Some(place) = place {
                        column.assign(&weights.column(*place));
                    }
                }
                let map = Map::Dense { weights: columns, bias: Erasing::new(pick(bias, 0.0)) };
                Ok(Activation::pending(base, shape, map, activation.pending.name.clone()))
            }
            Map::Diagonal { scale, shift } => {
                let map = Map::Diagonal {
                    scale: Erasing::new(pick(scale, 1.0)),
                    shift: Erasing::new(pick(shift, 0.0)),
                };
                let inner = Activation::of_value(base, activation.shape.clone());
                let gathered = self.gathered(&inner, shape.clone(), places, budget, node)?;
                let value = self.value(&gathered, budget)?;
                Ok(Activation::pending(value, shape, map, activation.pending.name.clone()))
            }
            _ => {
                let Some(piece) = Piece::of_places(&shape, places) else {
                    return unsupported("takes numbers in an order that is not one of its axes alone");
                };
                Ok(self.joined(std::slice::from_ref(activation), vec![piece], shape, budget, node)?)
            }
        }
    }

    /// A convolution of `activation`, `[channels, ...]`: the kernel's matrices
    /// are `[groups, inner, outer]`, its biases one for each channel of the result.
    pub(super) fn convolved(
        &mut self,
        activation: &Activation,
        convolution: Convolution,
        (mut matrices, mut bias): (Erasing<Ix3>, Erasing<Ix1>),
        shape: Vec<usize>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        check_size(shape.iter().product())?;
        let positions = convolution.size[0] * convolution.size[1];
        let mut base = None;
        if let (inner, Map::Diagonal { scale, shift }) = activation.composed() {
            // A summand for each channel passes through the windows unless they see zeros beside it.
            let padded = convolution.pads.iter().any(|&pad| pad > 0);
            let passes = !padded || shift.iter().all(|&summand| summand == 0.0);
            if passes && uniform(scale, positions) && uniform(shift, positions) {
                let [groups, rows, outer] = [matrices.dim().0, matrices.dim().1, matrices.dim().2];
                budget.charge_product(groups * rows, 1, outer, node)?;
                let taps = convolution.kernel[0] * convolution.kernel[1];
                for group in 0..groups {
                    for row in 0..rows {
                        let channel = group * (convolution.channels[0] / groups) + row / taps;
                        let (factor, summand) = (scale[channel * positions], shift[channel * positions]);
                        for column in 0..outer {
                            bias[group * outer + column] += summand * matrices[(group, row, column)];
                            matrices[(group, row, column)] *= factor;
                        }
                    }
                }
                base = Some(inner);
            }
        }
        let base = match base {
            Some(base) => base,
            None => self.value(activation, budget)?,
        };
        let map = Map::Windows { convolution, matrices, bias };
        Ok(Activation::pending(base, shape, map, escaped(node)))
    }

    fn push(&mut self, step: Step) -> Result<usize, ImportError> {
        if self.0.len() == MAXIMUM_STEPS {
            let limit = MAXIMUM_STEPS;
            return Err(ImportError::TooMany { what: "steps", found: limit + 1, limit });
        }
        self.0.push(step);
        Ok(self.0.len())
    }

    /// The ReLU of `activation`.
    pub(super) fn relu(
        &mut self,
        activation: &Activation,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        let value = self.value(activation, budget)?;
        let before = value.checked_sub(1).map(|step| &self.0[step].operation);
        // ReLU of a ReLU changes nothing.
        if matches!(before, Some(Operation::Relu)) {
            return Ok(activation.clone());
        }
        let value = self.push(Step::plain(&escaped(node), vec![value], Operation::Relu))?;
        Ok(Activation::of_value(value, activation.shape.clone()))
    }

    /// A function of each number of `activation`.
    pub(super) fn function(
        &mut self,
        function: Function,
        activation: &Activation,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        let inputs = vec![self.value(activation, budget)?];
        let value = self.push(Step::plain(&escaped(node), inputs, Operation::Function(function)))?;
        Ok(Activation::of_value(value, activation.shape.clone()))
    }

    /// 1 where a number of `activation` is 0 or more, 0 elsewhere.
    pub(super) fn step(
        &mut self,
        activation: &Activation,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        let inputs = vec![self.value(activation, budget)?];
        let value = self.push(Step::plain(&escaped(node), inputs, Operation::Step))?;
        Ok(Activation::of_value(value, activation.shape.clone()))
    }

    /// The steps from the input to `logits`, without those that the logits do not depend on.
    pub(super) fn into_steps(
        mut self,
        logits: &Activation,
        budget: &mut Budget,
    ) -> Result<Vec<Step>, ImportError> {
        let mut last = self.value(logits, budget)?;
        if last == 0 {
            // The logits are the input; a program has at least one step.
            let ones = Array1::ones(logits.features());
            let shift = Array1::zeros(logits.features());
            last = self.push(per_channel(logits, 0, "output", &ones, &shift, budget)?)?;
        }
        let mut needed = vec![false; last + 1];
        needed[last] = true;
        for value in (1..=last).rev() {
            if needed[value] {
                self.0[value - 1].inputs.iter().for_each(|&input| needed[input] = true);
            }
        }
        let mut moved = vec![0; last + 1];
        let mut steps = Vec::with_capacity(last);
        for (index, mut step) in self.0.into_iter().take(last).enumerate() {
            if needed[index + 1] {
                step.inputs.iter_mut().for_each(|input| *input = moved[*input]);
                steps.push(step);
                moved[index + 1] = steps.len();
            }
        }
        Ok(steps)
    }
}

/// One factor and summand for each feature, or for each channel where the features of a channel have
/// the same.
fn per_channel(
    activation: &Activation,
    base: usize,
    name: &str,
    scale: &Array1<f64>,
    shift: &Array1<f64>,
    budget: &mut Budget,
) -> Result<Step, ImportError> {
    let features = activation.features();
    check_size(features)?;
    let positions = channel_size(activation, &[scale, shift]);
    let channels = features / positions;
    budget.charge(2 * channels, name)?;
    let first = |values: &Array1<f64>| -> Array1<f64> { values.iter().step_by(positions).copied().collect() };
    let matrices = first(scale).insert_axis(Axis(1)).insert_axis(Axis(2));
    Ok(Step {
        name: name.to_owned(),
        inputs: vec![base],
        operation: Operation::Convolution(Convolution::per_channel(channels, positions)),
        weights: Some(Weights { matrices, bias: first(shift) }),
    })
}

/// One summand for each feature or channel.
fn shifted(
    activation: &Activation,
    base: usize,
    name: &str,
    shift: &Array1<f64>,
    budget: &mut Budget,
) -> Result<Step, ImportError> {
    check_size(activation.features())?;
    let positions = channel_size(activation, &[shift]);
    let channels = activation.features() / positions;
    budget.charge(channels, name)?;
    Ok(Step {
        name: name.to_owned(),
        inputs: vec![base],
        operation: Operation::Shift { channels, positions },
        weights: Some(Weights {
            matrices: Array3::zeros((0, 0, 0)),
            bias: shift.iter().step_by(positions).copied().collect(),
        }),
    })
}

/// The size of a channel when all of `values` are constant over channels, 1 otherwise.
fn channel_size(activation: &Activation, values: &[&Array1<f64>]) -> usize {
    let positions = activation.features() / activation.shape.first().copied().unwrap_or(1).max(1);
    if values.iter().all(|values| uniform(values, positions)) { positions } else { 1 }
}
