//! Values that depend on the input, kept as an affine map of the input or of the last ReLU's output.
//!
//! Consecutive linear nodes compose here to one map, elementwise ones without building a matrix, and
//! become one dense layer when a ReLU or the end of the graph asks for it.

use std::rc::Rc;

use ndarray::{Array1, Array2, Axis, Ix1, Ix2};

use super::{ImportError, budget::Budget};
use crate::{
    erase::Erasing,
    limits::{MAXIMUM_LAYERS, MAXIMUM_SIZE},
    model::Layer,
};

/// An affine map of row vectors.
#[derive(Clone)]
enum Map {
    Identity,
    /// `x ∘ scale + shift`, both `[features]`.
    Diagonal {
        scale: Rc<Erasing<Ix1>>,
        shift: Rc<Erasing<Ix1>>,
    },
    /// `x · weights + bias`, `[inputs, outputs]` and `[outputs]`.
    Dense {
        weights: Rc<Erasing<Ix2>>,
        bias: Rc<Erasing<Ix1>>,
    },
}

/// A value of shape `[batch, shape...]`: an affine map of the output of a stage, in row-major order.
#[derive(Clone)]
pub(super) struct Activation {
    stage: usize,
    /// Shape of one sample.
    pub(super) shape: Vec<usize>,
    map: Map,
}

/// The output of one ReLU, or the input.
struct Stage {
    /// Stage that `weights` applies to; meaningless for the input.
    previous: usize,
    /// `None` for the input.
    affine: Option<(Erasing<Ix2>, Erasing<Ix1>)>,
}

/// All stages; stage 0 is the input.
pub(super) struct Stages(Vec<Stage>);

impl Stages {
    /// The input stage and its activation.
    pub(super) fn new(input_shape: Vec<usize>) -> (Self, Activation) {
        let input = Activation { stage: 0, shape: input_shape, map: Map::Identity };
        (Self(vec![Stage { previous: 0, affine: None }]), input)
    }

    /// The ReLU of `activation`.
    pub(super) fn relu(
        &mut self,
        activation: &Activation,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Activation, ImportError> {
        // ReLU of a ReLU changes nothing.
        if activation.stage > 0 && matches!(activation.map, Map::Identity) {
            return Ok(activation.clone());
        }
        let affine = activation.dense(budget, node)?;
        if self.0.len() > MAXIMUM_LAYERS {
            let limit = MAXIMUM_LAYERS;
            return Err(ImportError::TooMany { what: "ReLU layers", found: self.0.len(), limit });
        }
        self.0.push(Stage { previous: activation.stage, affine: Some(affine) });
        Ok(Activation { stage: self.0.len() - 1, shape: activation.shape.clone(), map: Map::Identity })
    }

    /// The layers from the input to `logits`.
    pub(super) fn into_layers(
        mut self,
        logits: &Activation,
        budget: &mut Budget,
    ) -> Result<Vec<Layer>, ImportError> {
        let layer = |(weights, bias): (Erasing<Ix2>, Erasing<Ix1>)| Layer::Affine {
            weights: weights.into_inner(),
            bias: bias.into_inner(),
        };
        let mut layers = vec![layer(logits.dense(budget, "output")?)];
        let mut stage = logits.stage;
        // A stage only refers to an earlier one, so this ends at the input.
        while let Some(affine) = self.0[stage].affine.take() {
            layers.push(Layer::Relu);
            layers.push(layer(affine));
            stage = self.0[stage].previous;
        }
        layers.reverse();
        Ok(layers)
    }
}

impl Activation {
    /// Number of values of one sample.
    pub(super) fn features(&self) -> usize {
        self.shape.iter().product()
    }

    /// The same values in another shape of as many elements.
    pub(super) fn reshaped(&self, shape: Vec<usize>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), self.features());
        Self { shape, ..self.clone() }
    }

    /// True when both are the same value in the same order.
    pub(super) fn same_values(&self, other: &Self) -> bool {
        self.stage == other.stage
            && match (&self.map, &other.map) {
                (Map::Identity, Map::Identity) => self.features() == other.features(),
                (Map::Diagonal { scale, shift }, Map::Diagonal { scale: scale_2, shift: shift_2 }) => {
                    Rc::ptr_eq(scale, scale_2) && Rc::ptr_eq(shift, shift_2)
                }
                (Map::Dense { weights, bias }, Map::Dense { weights: weights_2, bias: bias_2 }) => {
                    Rc::ptr_eq(weights, weights_2) && Rc::ptr_eq(bias, bias_2)
                }
                _ => false,
            }
    }

    /// `self ∘ scale + shift`, both with one value a feature.
    pub(super) fn scaled(
        &self,
        scale: &Array1<f64>,
        shift: &Array1<f64>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Self, ImportError> {
        let diagonal = |scale: Array1<f64>, shift: Array1<f64>| Map::Diagonal {
            scale: Rc::new(Erasing::new(scale)),
            shift: Rc::new(Erasing::new(shift)),
        };
        let map = match &self.map {
            Map::Identity => {
                budget.charge(2 * scale.len(), node)?;
                diagonal(scale.clone(), shift.clone())
            }
            Map::Diagonal { scale: inner_scale, shift: inner_shift } => {
                budget.charge(2 * scale.len(), node)?;
                diagonal(&***inner_scale * scale, &***inner_shift * scale + shift)
            }
            Map::Dense { weights, bias } => {
                budget.charge(weights.len() + bias.len(), node)?;
                Map::Dense {
                    weights: Rc::new(Erasing::new(&***weights * scale)),
                    bias: Rc::new(Erasing::new(&***bias * scale + shift)),
                }
            }
        };
        Ok(Self { stage: self.stage, shape: self.shape.clone(), map })
    }

    /// `self · weights + bias` of shape `[batch, shape...]`; `weights` has a row for each feature.
    pub(super) fn multiplied(
        &self,
        weights: Erasing<Ix2>,
        bias: Erasing<Ix1>,
        shape: Vec<usize>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Self, ImportError> {
        let (inner, outputs) = weights.dim();
        check_size(outputs)?;
        let (weights, bias) = match &self.map {
            Map::Identity => (weights, bias),
            Map::Diagonal { scale, shift } => {
                budget.charge_product(inner, 1, outputs, node)?;
                let bias = Erasing::new(shift.dot(&*weights) + &*bias);
                let mut weights = weights;
                for (mut row, &scale) in weights.outer_iter_mut().zip(scale.iter()) {
                    row *= scale;
                }
                (weights, bias)
            }
            Map::Dense { weights: inner_weights, bias: inner_bias } => {
                budget.charge_product(inner_weights.nrows() + 1, inner, outputs, node)?;
                let bias = Erasing::new(inner_bias.dot(&*weights) + &*bias);
                (Erasing::new(inner_weights.dot(&*weights)), bias)
            }
        };
        let map = Map::Dense { weights: Rc::new(weights), bias: Rc::new(bias) };
        Ok(Self { stage: self.stage, shape, map })
    }

    /// The map as a dense layer.
    fn dense(&self, budget: &mut Budget, node: &str) -> Result<(Erasing<Ix2>, Erasing<Ix1>), ImportError> {
        let features = self.features();
        check_size(features)?;
        let (weights, bias) = match &self.map {
            Map::Dense { weights, bias } => {
                budget.charge(weights.len() + bias.len(), node)?;
                ((***weights).clone(), (***bias).clone())
            }
            Map::Diagonal { scale, shift } => {
                budget.charge(features.saturating_mul(features), node)?;
                (Array2::from_diag(&***scale), (***shift).clone())
            }
            Map::Identity => {
                budget.charge(features.saturating_mul(features), node)?;
                (Array2::eye(features), Array1::zeros(features))
            }
        };
        Ok((Erasing::new(weights), Erasing::new(bias)))
    }

    /// Two logits for a single score `z`: column 0 is `factors[0] · z`, column 1 `factors[1] · z`.
    pub(super) fn two_logits(&self, factors: [f64; 2], budget: &mut Budget) -> Result<Self, ImportError> {
        let weights = Array1::from_vec(factors.to_vec()).insert_axis(Axis(0));
        self.multiplied(Erasing::new(weights), Erasing::new(Array1::zeros(2)), vec![2], budget, "output")
    }
}

fn check_size(size: usize) -> Result<(), ImportError> {
    if size > MAXIMUM_SIZE {
        let limit = MAXIMUM_SIZE;
        return Err(ImportError::TooMany { what: "values in one layer", found: size, limit });
    }
    Ok(())
}
