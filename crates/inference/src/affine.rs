//! Products of shared values with shared weights: the local part.

use concilium_mpc::Shares;
use concilium_mpc::linear::SharedMatrix;
use concilium_mpc::shares::AdditiveShare;
use concilium_network::program::Affine;
use concilium_network::{Convolution, Operation};
use concilium_ring::Element;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use crate::model::row;
use crate::windows::gather_windows;

/// Numbers of the gathered windows that are held at a time, on either component: both stay in the
/// second-level cache.
const WINDOW_ELEMENTS: usize = 1 << 15;

/// The weights of an affine step as one server holds them.
pub(crate) struct SharedAffine<E: Element> {
    affine: Affine,
    /// The windows, unless the whole value is multiplied.
    convolution: Option<Convolution>,
    kernels: Kernels<E>,
    /// One row, at scale 2f.
    bias: Shares<E>,
}

enum Kernels<E: Element> {
    /// A matrix for each group.
    Matrices(Vec<SharedMatrix<E>>),
    /// Windows with one result each, as in depthwise convolutions: a packed matrix of one column would
    /// be mostly padding. One row, group after group.
    Vectors(Shares<E>),
}

impl<E: Element> SharedAffine<E> {
    /// Prepares the components of a checked step: the matrices, then the biases. `None` for a step that is
    /// no product with weights.
    pub(crate) fn new(operation: &Operation, own: &[E], next: &[E]) -> Option<Self> {
        let affine = operation.affine()?;
        let convolution = match operation {
            Operation::Convolution(convolution) => Some(*convolution),
            _ => None,
        };
        let weights = affine.weights();
        let kernels = if affine.outer == 1 && !affine.is_dense() {
            Kernels::Vectors(row(own[..weights].to_vec(), next[..weights].to_vec()))
        } else {
            let (size, shape) = (affine.inner * affine.outer, (affine.inner, affine.outer));
            let matrix = |component: &'_ [E], group: usize| {
                let elements = component[group * size..(group + 1) * size].to_vec();
                ndarray::Array2::from_shape_vec(shape, elements).expect("the lengths were checked")
            };
            let shared = |group| {
                let held = Shares::new(matrix(own, group), matrix(next, group));
                SharedMatrix::new(held.own(), held.next())
            };
            Kernels::Matrices((0..affine.groups).map(shared).collect())
        };
        let bias = row(own[weights..].to_vec(), next[weights..].to_vec());
        Some(SharedAffine { affine, convolution, kernels, bias })
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let kernels = match &self.kernels {
            Kernels::Matrices(matrices) => matrices.iter().map(SharedMatrix::memory_bytes).sum(),
            Kernels::Vectors(weights) => 2 * weights.len() * E::BYTES,
        };
        kernels + 2 * self.bias.len() * E::BYTES
    }

    /// Adds this server's term of the product of a value with the weights, and of the bias, to `out`,
    /// `[rows, outputs]`. `own` and `next` are the value's components, `[rows, inputs]`. No
    /// communication.
    pub(crate) fn add_terms(
        &self,
        own: ArrayView2<'_, E>,
        next: ArrayView2<'_, E>,
        mut out: ArrayViewMut2<'_, E>,
    ) {
        let bias = self.bias.own();
        let bias = bias.as_slice().expect("one row is adjacent numbers");
        for mut line in out.outer_iter_mut() {
            let line = line.as_slice_mut().expect("rows are adjacent numbers");
            for (channel, &bias) in line.chunks_exact_mut(self.affine.positions).zip(bias) {
                channel.iter_mut().for_each(|term| *term += bias);
            }
        }
        match &self.kernels {
            Kernels::Matrices(matrices) if self.affine.is_dense() => matrices[0].multiply_add(own, next, out),
            Kernels::Matrices(matrices) => {
                let convolution = self.convolution.as_ref().expect("what is not dense has windows");
                self.add_windows(convolution, matrices, own, next, out);
            }
            Kernels::Vectors(weights) => self.add_vectors(weights, own, next, out),
        }
    }

    /// Windows are gathered in pieces, so that memory does not grow with the image.
    fn add_windows(
        &self,
        convolution: &Convolution,
        matrices: &[SharedMatrix<E>],
        own: ArrayView2<'_, E>,
        next: ArrayView2<'_, E>,
        mut out: ArrayViewMut2<'_, E>,
    ) {
        let affine = &self.affine;
        // Pieces of one row, as many positions at a time as there is room for, or of whole rows.
        let positions = (WINDOW_ELEMENTS / affine.inner).clamp(1, affine.positions);
        let rows = (WINDOW_ELEMENTS / (affine.inner * affine.positions)).clamp(1, own.nrows().max(1));
        let lines = rows * positions;
        // Reused by all pieces: overwritten each time, and erased when dropped.
        let zeros = || Array2::from_elem((lines, affine.inner), E::ZERO);
        let (mut own_windows, mut next_windows) = (zeros(), zeros());
        let mut products = AdditiveShare::zeros(lines, affine.outer);
        for top in (0..own.nrows()).step_by(rows) {
            let rows = top..(top + rows).min(own.nrows());
            for start in (0..affine.positions).step_by(positions) {
                let positions = start..(start + positions).min(affine.positions);
                let (count, lines) = (positions.len(), rows.len() * positions.len());
                for (group, matrix) in matrices.iter().enumerate() {
                    for (values, windows) in [(own, &mut own_windows), (next, &mut next_windows)] {
                        let windows = windows.as_slice_mut().expect("it is in standard layout");
                        let values = values.slice_move(s![rows.clone(), ..]);
                        let windows = &mut windows[..lines * affine.inner];
                        gather_windows(convolution, group, positions.clone(), values, windows);
                    }
                    let mut terms = products.terms_mut().slice_mut(s![..lines, ..]);
                    terms.fill(E::ZERO);
                    let windows = [own_windows.slice(s![..lines, ..]), next_windows.slice(s![..lines, ..])];
                    matrix.multiply_add(windows[0], windows[1], terms.view_mut());
                    let terms = terms.as_slice().expect("it is in standard layout");
                    for (row, terms) in rows.clone().zip(terms.chunks_exact(count * affine.outer)) {
                        let mut line = out.row_mut(row);
                        let line = line.as_slice_mut().expect("rows are adjacent numbers");
                        for outer in 0..affine.outer {
                            let first = affine.output(group, outer, start);
                            let terms = terms[outer..].iter().step_by(affine.outer);
                            let target = line[first..first + count].iter_mut();
                            target.zip(terms).for_each(|(target, &term)| *target += term);
                        }
                    }
                }
            }
        }
        // As shares they are erased.
        drop(Shares::new(own_windows, next_windows));
    }

    fn add_vectors(
        &self,
        weights: &Shares<E>,
        own: ArrayView2<'_, E>,
        next: ArrayView2<'_, E>,
        mut out: ArrayViewMut2<'_, E>,
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
