//! The choice of a kernel: by what the processor has and by what passes the self-check.

use std::sync::OnceLock;

use ndarray::{Array2, ArrayViewMut2, s};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::panels::Panels;
use super::portable;
use super::product::Product;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::element::{Element, Z32, Z64};
use crate::wipe::wipe;

/// Code that multiplies matrices, for a set of instructions that this machine has.
///
/// Values exist only of kernels that can run here: holding one is the proof that the unsafe code behind
/// it asks for. All of them compute the same products from the same packed matrices.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Instructions);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Instructions {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
}

/// Rows, inner dimension and columns of the products that the self-check computes, from two left
/// operands each: one row, and as many as it takes for tiles, with a narrow last panel.
pub(super) const CHECKED_SHAPES: [(usize, usize, usize); 3] = [(1, 70, 41), (11, 64, 24), (40, 203, 41)];

/// The outcome of [`self_check`].
#[derive(Clone, Debug)]
pub struct SelfCheck {
    /// The kernel that products of this process use.
    pub kernel: Kernel,
    /// Kernels that this machine claims to support and that computed a wrong product, fastest first.
    /// A machine with any should not be trusted with other work either.
    pub rejected: Vec<Kernel>,
}

impl Kernel {
    /// The kernels that this machine can run, the slowest first; the first is the portable one.
    pub fn available() -> Vec<Kernel> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut kernels = vec![Kernel(Instructions::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(avx2::is_available().then_some(Kernel(Instructions::Avx2)));
            kernels.extend(avx512::is_available().then_some(Kernel(Instructions::Avx512)));
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        kernels.extend(amx::is_available().then_some(Kernel(Instructions::Amx)));
        kernels
    }

    /// The kernel that [`PackedMatrix::multiply_add`](super::PackedMatrix::multiply_add) uses.
    pub fn selected() -> Kernel {
        self_check().kernel
    }

    /// The instructions that it is made of, for logs and tables.
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => "AVX-512",
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Instructions::Amx => "AMX",
        }
    }

    pub(super) fn run<E: Element>(self, product: &mut Product<'_, E>) {
        if self.0 == Instructions::Portable {
            portable::multiply_add(product);
        } else if product.has_adjacent_columns() {
            self.run_adjacent(product);
        } else {
            // Rare, and dear only where the result is wide and the inner dimension small.
            let mut terms = Array2::from_elem(product.out().dim(), E::ZERO);
            let (left, right) = (*product.left(), product.right());
            if let Some(mut adjacent) = Product::new(left, right, terms.view_mut()) {
                self.run_adjacent(&mut adjacent);
            }
            product.out().zip_mut_with(&terms, |element, &term| *element += term);
            let (mut elements, _) = terms.into_raw_vec_and_offset();
            wipe(&mut elements);
        }
    }

    #[allow(unsafe_code)]
    fn run_adjacent<E: Element>(self, product: &mut Product<'_, E>) {
        match self.0 {
            Instructions::Portable => portable::multiply_add(product),
            // SAFETY: a value with these instructions comes from `available`, which asked for them.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { avx2::multiply_add(product) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => unsafe { avx512::multiply_add(product) },
            // SAFETY: as above.
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Instructions::Amx => unsafe { amx::multiply_add(product) },
        }
    }

    /// Whether fixed small products come out as they are defined.
    fn is_right(self) -> bool {
        CHECKED_SHAPES.iter().all(|&(rows, inner, columns)| {
            self.computes::<Z64>(rows, inner, columns) && self.computes::<Z32>(rows, inner, columns)
        })
    }

    fn computes<E: Element>(self, rows: usize, inner: usize, columns: usize) -> bool {
        // Multiples of an odd constant: all bytes of the words are in use.
        let word = |index: usize| E::from_unsigned((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let left = Array2::from_shape_fn((rows, inner), |(i, k)| word(i * inner + k));
        let right = Array2::from_shape_fn((inner, columns), |(k, j)| word(k + j * inner + 7));
        let mut panels = Panels::zeros(inner, columns);
        panels.add(0, 0, right.view());
        let mut out = Array2::from_elem((rows, columns), E::ZERO);
        let (first, second) = left.view().split_at(ndarray::Axis(1), inner / 3);
        let target: ArrayViewMut2<'_, E> = out.slice_mut(s![.., ..]);
        if let Some(mut product) = Product::new([first, second], &panels, target) {
            self.run(&mut product);
        }
        out == portable::definition(left.view(), right.view())
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Runs the fastest kernel of this machine on fixed small products and compares them with the
/// definition, then the next one if they differ, down to the portable one. It does so once in a process,
/// by itself before the first product; a server calls it at start to log the outcome.
///
/// A processor or a hypervisor that loses register state would spoil every result without an error.
pub fn self_check() -> &'static SelfCheck {
    static OUTCOME: OnceLock<SelfCheck> = OnceLock::new();
    OUTCOME.get_or_init(|| {
        let mut kernels = Kernel::available();
        let mut rejected = Vec::new();
        // The portable kernel is ordinary code: there is nothing to fall back on.
        while let Some(kernel) =
            kernels.pop_if(|kernel| kernel.0 != Instructions::Portable && !kernel.is_right())
        {
            rejected.push(kernel);
        }
        SelfCheck { kernel: kernels.pop().unwrap_or(Kernel(Instructions::Portable)), rejected }
    })
}

/// The name of the kernel that products of this process use.
pub fn kernel_name() -> &'static str {
    Kernel::selected().name()
}
