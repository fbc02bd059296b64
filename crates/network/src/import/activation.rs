//! Values that depend on the input.
//!
//! A value is an affine map of a step's result, which no step computes yet: consecutive linear nodes
//! compose to one map, elementwise ones without building a matrix. The map becomes a step when a node
//! asks for the numbers themselves, as ReLU does, or the graph ends.

use std::{cell::Cell, rc::Rc};

use ndarray::{Array1, Array2, Axis, Ix1, Ix2, Ix3};

use super::{ImportError, budget::Budget, builder::Builder, error::escaped};
use crate::{erase::Erasing, limits::MAXIMUM_SIZE, program::Convolution};

/// An affine map of row vectors.
pub(super) enum Map {
    Identity,
    /// `x ∘ scale + shift`, both `[features]`.
    Diagonal {
        scale: Erasing<Ix1>,
        shift: Erasing<Ix1>,
    },
    /// `x · weights + bias`, `[inputs, outputs]` and `[outputs]`.
    Dense {
        weights: Erasing<Ix2>,
        bias: Erasing<Ix1>,
    },
    /// `[groups, rows, inner]`, each row times its group's matrix: `[groups, rows, outer]`.
    Rows {
        rows: usize,
        /// `[groups, inner, outer]`.
        matrices: Erasing<Ix3>,
        /// `[groups, outer]`.
        bias: Erasing<Ix2>,
    },
    /// A convolution: for each group a matrix, and a bias for each output channel.
    Windows {
        convolution: Convolution,
        matrices: Erasing<Ix3>,
        bias: Erasing<Ix1>,
    },
}

/// A map that no step computes yet, or only for some of those who use it.
pub(super) struct Pending {
    /// The value that it is applied to.
    pub(super) base: usize,
    pub(super) map: Map,
    /// The node that a step is named after.
    pub(super) name: String,
    /// The value that holds its result, once a step computes it.
    pub(super) made: Cell<Option<usize>>,
}

/// A value of shape `[batch, shape...]` in row-major order.
#[derive(Clone)]
pub(super) struct Activation {
    /// Shape of one sample.
    pub(super) shape: Vec<usize>,
    pub(super) pending: Rc<Pending>,
}

impl Activation {
    /// The input of the program.
    pub(super) fn input(shape: Vec<usize>) -> Self {
        Self::of_value(0, shape)
    }

    pub(super) fn of_value(base: usize, shape: Vec<usize>) -> Self {
        Self::pending(base, shape, Map::Identity, String::new())
    }

    pub(super) fn pending(base: usize, shape: Vec<usize>, map: Map, name: String) -> Self {
        Self { shape, pending: Rc::new(Pending { base, map, name, made: Cell::new(None) }) }
    }

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
        let identity = |activation: &Self| matches!(activation.pending.map, Map::Identity);
        Rc::ptr_eq(&self.pending, &other.pending)
            || (identity(self) && identity(other) && self.pending.base == other.pending.base)
    }

    /// What later maps compose with: the map, or the value once a step computes it.
    pub(super) fn composed(&self) -> (usize, &Map) {
        match self.pending.made.get() {
            Some(value) => (value, &Map::Identity),
            None => (self.pending.base, &self.pending.map),
        }
    }

    /// True when a product waits to become a step, which a factor can still be part of.
    pub(super) fn is_pending(&self) -> bool {
        !matches!(self.composed().1, Map::Identity)
    }

    /// `self ∘ scale + shift`, both with one value a feature.
    pub(super) fn scaled(
        &self,
        builder: &mut Builder,
        scale: &Array1<f64>,
        shift: &Array1<f64>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Self, ImportError> {
        if let (_, Map::Windows { convolution, .. }) = self.composed() {
            let [height, width] = convolution.output_size();
            if !(uniform(scale, height * width) && uniform(shift, height * width)) {
                builder.value(self, budget)?;
            }
        }
        if let (_, Map::Rows { rows, matrices, .. }) = self.composed()
            && !(repeats(scale, *rows, matrices.dim().2) && repeats(shift, *rows, matrices.dim().2))
        {
            builder.value(self, budget)?;
        }
        let (base, map) = self.composed();
        let mut name = escaped(node);
        let map = match map {
            Map::Identity => {
                budget.charge(2 * scale.len(), node)?;
                Map::Diagonal { scale: Erasing::new(scale.clone()), shift: Erasing::new(shift.clone()) }
            }
            Map::Diagonal { scale: inner_scale, shift: inner_shift } => {
                budget.charge(2 * scale.len(), node)?;
                Map::Diagonal {
                    scale: Erasing::new(&**inner_scale * scale),
                    shift: Erasing::new(&**inner_shift * scale + shift),
                }
            }
            Map::Dense { weights, bias } => {
                budget.charge(weights.len() + bias.len(), node)?;
                // People know a layer by its product, not by the bias or normalisation after it.
                name = self.pending.name.clone();
                Map::Dense {
                    weights: Erasing::new(&**weights * scale),
                    bias: Erasing::new(&**bias * scale + shift),
                }
            }
            Map::Rows { rows, matrices, bias } => {
                budget.charge(matrices.len() + bias.len(), node)?;
                name = self.pending.name.clone();
                let (scale, shift) = (first_rows(scale, *rows, bias), first_rows(shift, *rows, bias));
                let factors = scale.view().insert_axis(Axis(1));
                Map::Rows {
                    rows: *rows,
                    matrices: Erasing::new(&**matrices * &factors),
                    bias: Erasing::new(&**bias * &*scale + &*shift),
                }
            }
            Map::Windows { convolution, matrices, bias } => {
                budget.charge(matrices.len() + bias.len(), node)?;
                name = self.pending.name.clone();
                let [height, width] = convolution.output_size();
                let channels = |values: &Array1<f64>| -> Array1<f64> {
                    values.iter().step_by(height * width).copied().collect()
                };
                let (scale, shift) = (Erasing::new(channels(scale)), Erasing::new(channels(shift)));
                let (groups, _, outer) = matrices.dim();
                // The channels of a group stand along the columns of its matrix.
                let factors = scale.view().into_shape_with_order((groups, 1, outer));
                let factors = factors.expect("there is a factor for each output channel");
                Map::Windows {
                    convolution: *convolution,
                    matrices: Erasing::new(&**matrices * &factors),
                    bias: Erasing::new(&**bias * &*scale + &*shift),
                }
            }
        };
        Ok(Self::pending(base, self.shape.clone(), map, name))
    }

    /// `self · weights + bias` of shape `[batch, shape...]`; `weights` has a row for each feature.
    pub(super) fn multiplied(
        &self,
        builder: &mut Builder,
        weights: Erasing<Ix2>,
        bias: Erasing<Ix1>,
        shape: Vec<usize>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Self, ImportError> {
        let (inner, outputs) = weights.dim();
        check_size(outputs)?;
        if let (_, Map::Windows { .. } | Map::Rows { .. }) = self.composed() {
            builder.value(self, budget)?;
        }
        let (base, map) = self.composed();
        let (weights, bias) = match map {
            Map::Identity | Map::Windows { .. } | Map::Rows { .. } => (weights, bias),
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
        Ok(Self::pending(base, shape, Map::Dense { weights, bias }, escaped(node)))
    }

    /// Each of `rows` rows of each group times the group's matrix, plus its bias, of shape `[batch, shape...]`.
    /// `matrices` is `[groups, inner, outer]`, `bias` `[groups, outer]`.
    pub(super) fn multiplied_rows(
        &self,
        builder: &mut Builder,
        rows: usize,
        (mut matrices, mut bias): (Erasing<Ix3>, Erasing<Ix2>),
        shape: Vec<usize>,
        budget: &mut Budget,
        node: &str,
    ) -> Result<Self, ImportError> {
        let (groups, inner, outer) = matrices.dim();
        check_size(groups.saturating_mul(rows).saturating_mul(outer))?;
        if groups == 1 && rows == 1 {
            let weights = Erasing::new(matrices.index_axis(Axis(0), 0).to_owned());
            let bias = Erasing::new(bias.index_axis(Axis(0), 0).to_owned());
            return self.multiplied(builder, weights, bias, shape, budget, node);
        }
        let composes = match self.composed().1 {
            Map::Identity => true,
            Map::Diagonal { scale, shift } => repeats(scale, rows, inner) && repeats(shift, rows, inner),
            Map::Rows { rows: own, matrices: before, .. } => *own == rows && before.dim().0 == groups,
            Map::Dense { .. } | Map::Windows { .. } => false,
        };
        if !composes {
            builder.value(self, budget)?;
        }
        let (base, map) = self.composed();
        match map {
            Map::Identity | Map::Dense { .. } | Map::Windows { .. } => {}
            Map::Diagonal { scale, shift } => {
                budget.charge_product(groups * inner, 1, outer, node)?;
                for group in 0..groups {
                    let first = |values: &Array1<f64>| -> Erasing<Ix1> {
                        Erasing::new(values.iter().skip(group * rows * inner).take(inner).copied().collect())
                    };
                    let (scale, shift) = (first(scale), first(shift));
                    let mut matrix = matrices.index_axis_mut(Axis(0), group);
                    let mut bias = bias.row_mut(group);
                    bias += &shift.dot(&matrix);
                    for (mut row, &factor) in matrix.outer_iter_mut().zip(scale.iter()) {
                        row *= factor;
                    }
                }
            }
            Map::Rows { matrices: before, bias: before_bias, .. } => {
                let width = before.dim().1;
                budget.charge_product(groups * (width + 1), inner, outer, node)?;
                let mut product = Erasing::new(ndarray::Array3::zeros((groups, width, outer)));
                for group in 0..groups {
                    let matrix = matrices.index_axis(Axis(0), group);
                    let mut bias = bias.row_mut(group);
                    bias += &before_bias.row(group).dot(&matrix);
                    let composed = Erasing::new(before.index_axis(Axis(0), group).dot(&matrix));
                    product.index_axis_mut(Axis(0), group).assign(&composed);
                }
                matrices = product;
            }
        }
        Ok(Self::pending(base, shape, Map::Rows { rows, matrices, bias }, escaped(node)))
    }

    /// Two logits for a single score `z`: column 0 is `factors[0] · z`, column 1 `factors[1] · z`.
    pub(super) fn two_logits(
        &self,
        factors: [f64; 2],
        builder: &mut Builder,
        budget: &mut Budget,
    ) -> Result<Self, ImportError> {
        let weights = Erasing::new(Array1::from_vec(factors.to_vec()).insert_axis(Axis(0)));
        self.multiplied(builder, weights, Erasing::new(Array1::zeros(2)), vec![2], budget, "output")
    }
}

pub(super) fn check_size(size: usize) -> Result<(), ImportError> {
    if size > MAXIMUM_SIZE {
        let limit = MAXIMUM_SIZE;
        return Err(ImportError::TooMany { what: "values in one layer", found: size, limit });
    }
    Ok(())
}

/// True when values are constant over runs of `positions`.
pub(super) fn uniform(values: &Array1<f64>, positions: usize) -> bool {
    (0..values.len()).all(|index| values[index].to_bits() == values[index - index % positions].to_bits())
}

/// True when values `[groups, rows, width]` are the same for every row of a group.
fn repeats(values: &Array1<f64>, rows: usize, width: usize) -> bool {
    let first = |index: usize| index / (rows * width) * (rows * width) + index % width;
    (0..values.len()).all(|index| values[index].to_bits() == values[first(index)].to_bits())
}

/// Of values `[groups, rows, outer]` the first row of each group, in the shape of `bias`.
fn first_rows(values: &Array1<f64>, rows: usize, bias: &Array2<f64>) -> Erasing<Ix2> {
    let outer = bias.ncols();
    Erasing::new(Array2::from_shape_fn(bias.dim(), |(group, column)| values[group * rows * outer + column]))
}
