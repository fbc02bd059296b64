//! Products of shared values with shared weights: the local part.

use concilium_mpc::Shares;
use concilium_mpc::linear::SharedMatrix;
use concilium_mpc::shares::AdditiveShare;
use concilium_network::program::Affine;
use concilium_ring::{Element, Z64};
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use crate::model::row;

/// Numbers of the gathered windows that are held at a time, on either component.
const WINDOW_ELEMENTS: usize = 1 << 18;

/// The weights of an affine step as one server holds them.
pub(crate) struct SharedAffine {
    affine: Affine,
    kernels: Kernels,
    /// One row, at scale 2f.
    bias: Shares<Z64>,
}

enum Kernels {
    /// A matrix for each group.
    Matrices(Vec<SharedMatrix<Z64>>),
    /// Windows with one result each, as in depthwise convolutions: a packed matrix of one column would
    /// be mostly padding. One row, group after group.
    Vectors(Shares<Z64>),
}

impl SharedAffine {
    /// Prepares the components of a checked step: the matrices, then the biases.
    pub(crate) fn new(affine: Affine, own: &[Z64], next: &[Z64]) -> Self {
        let weights = affine.weights();
        let kernels = if affine.outer == 1 && !affine.is_dense() {
            Kernels::Vectors(row(&own[..weights], &next[..weights]))
        } else {
            let (size, shape) = (affine.inner * affine.outer, (affine.inner, affine.outer));
            let matrix = |component: &'_ [Z64], group: usize| {
                let elements = component[group * size..(group + 1) * size].to_vec();
                ndarray::Array2::from_shape_vec(shape, elements).expect("the lengths were checked")
            };
            let shared = |group| {
                let held = Shares::new(matrix(own, group), matrix(next, group));
                SharedMatrix::new(held.own(), held.next())
            };
            Kernels::Matrices((0..affine.groups).map(shared).collect())
        };
        SharedAffine { affine, kernels, bias: row(&own[weights..], &next[weights..]) }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let kernels = match &self.kernels {
            Kernels::Matrices(matrices) => matrices.iter().map(SharedMatrix::memory_bytes).sum(),
            Kernels::Vectors(weights) => 2 * weights.len() * Z64::BYTES,
        };
        kernels + 2 * self.bias.len() * Z64::BYTES
    }

    /// Adds this server's term of the product of a value with the weights, and of the bias, to `out`,
    /// `[rows, outputs]`. `own` and `next` are the value's components, `[rows, inputs]`. No
    /// communication.
    pub(crate) fn add_terms(
        &self,
        own: ArrayView2<'_, Z64>,
        next: ArrayView2<'_, Z64>,
        mut out: ArrayViewMut2<'_, Z64>,
    ) {
        let bias = self.bias.own();
        for mut line in out.outer_iter_mut() {
            for (output, term) in line.iter_mut().enumerate() {
                *term += bias[(0, self.affine.channel(output))];
            }
        }
        match &self.kernels {
            Kernels::Matrices(matrices) if self.affine.is_dense() => matrices[0].multiply_add(own, next, out),
            Kernels::Matrices(matrices) => self.add_windows(matrices, own, next, out),
            Kernels::Vectors(weights) => self.add_vectors(weights, own, next, out),
        }
    }

    /// Windows are gathered in pieces, so that memory does not grow with the image.
    fn add_windows(
        &self,
        matrices: &[SharedMatrix<Z64>],
        own: ArrayView2<'_, Z64>,
        next: ArrayView2<'_, Z64>,
        mut out: ArrayViewMut2<'_, Z64>,
    ) {
        let affine = &self.affine;
        let rows = own.nrows();
        let piece = (WINDOW_ELEMENTS / (rows * affine.inner).max(1)).max(1);
        for (group, matrix) in matrices.iter().enumerate() {
            for start in (0..affine.positions).step_by(piece) {
                let positions = start..(start + piece).min(affine.positions);
                let count = positions.len();
                let gather = |values| affine.windows(group, positions.clone(), values, Z64::ZERO);
                let windows = Shares::new(gather(own), gather(next));
                let mut products = AdditiveShare::zeros(rows * count, affine.outer);
                matrix.multiply_add(windows.own(), windows.next(), products.terms_mut().view_mut());
                for (line, product) in products.terms_mut().axis_iter(Axis(0)).enumerate() {
                    let (row, position) = (line / count, start + line % count);
                    for (outer, &term) in product.iter().enumerate() {
                        out[(row, affine.output(group, outer, position))] += term;
                    }
                }
            }
        }
    }

    fn add_vectors(
        &self,
        weights: &Shares<Z64>,
        own: ArrayView2<'_, Z64>,
        next: ArrayView2<'_, Z64>,
        mut out: ArrayViewMut2<'_, Z64>,
    ) {
        let affine = &self.affine;
        let (first, second) = (weights.own(), weights.next());
        for group in 0..affine.groups {
            for position in 0..affine.positions {
                let output = affine.output(group, 0, position);
                for (tap, place) in affine.window(group, position).enumerate() {
                    let Some(place) = place else { continue };
                    let weight = first[(0, group * affine.inner + tap)];
                    let sum = weight + second[(0, group * affine.inner + tap)];
                    for row in 0..own.nrows() {
                        out[(row, output)] += own[(row, place)] * sum + next[(row, place)] * weight;
                    }
                }
            }
        }
    }
}
