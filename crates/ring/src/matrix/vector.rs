//! The register tile of the vector kernels, generic over the instruction set.
//!
//! Left operands are read where they lie, whatever their strides: one element is spread over a vector
//! and multiplied with a line of a panel, so nothing is packed and no copy of a share is left behind.
//!
//! # Invariants
//! - A [`Product`] is checked: its views have the shapes that they say and are valid for reads (the left
//!   ones) or writes (the result) at all of their indices. [`Panels`](super::panels::Panels) holds
//!   `rows * stride` elements for each panel. All pointers below are computed from indices within
//!   these shapes.
//! - [`Lanes`] methods are called only from a function that has the instruction set enabled, and are
//!   `#[inline(always)]`, so that they are compiled into it.
//! - Elements are `Wrapping` words (`Element` is sealed), so any bit pattern may be read and written.

#![allow(unsafe_code)]

use ndarray::ArrayView2;

use super::panels::{LINE_BYTES, Panel};
use super::product::Product;
use crate::element::Element;

/// Rows up to which the whole inner dimension is one block.
const FEW_ROWS: usize = 8;
/// How far ahead the right operand is asked for.
const PREFETCH_BYTES: usize = 2048;

/// Vectors of ring elements in some instruction set.
///
/// # Safety
/// An implementation reads and writes exactly `BYTES` bytes at the pointers that it is given, one element in
/// `spread`, and computes products modulo 2^k. Callers have the instruction set enabled.
pub(super) unsafe trait Lanes {
    /// Bytes of a vector, all in use.
    const BYTES: usize;
    /// Rows of the tallest tile that the registers hold.
    const MAX_ROWS: usize;
    /// Rows of a panel that stay in a cache while left rows pass over them.
    const BLOCK: usize;
    /// Bytes of the left rows that pass over the panels, one after the other, for one block.
    const LEFT_BYTES: usize;
    /// An element of the left operand in all lanes.
    type Left: Copy;
    /// A vector of the right operand.
    type Right: Copy;
    /// A sum of products.
    type Sum: Copy;

    unsafe fn zero() -> Self::Sum;
    unsafe fn spread(element: *const u8) -> Self::Left;
    unsafe fn load(elements: *const u8) -> Self::Right;
    /// Asks for the cache line at an address, which need not be valid.
    fn prefetch(address: *const u8);
    unsafe fn multiply_add(sum: Self::Sum, left: Self::Left, right: Self::Right) -> Self::Sum;
    /// Adds the sums to the elements at `target`.
    unsafe fn add_to(target: *mut u8, sum: Self::Sum);
}

/// A left operand: strides are in bytes.
#[derive(Clone, Copy)]
pub(super) struct Part {
    start: *const u8,
    row_stride: isize,
    pub(super) stride: isize,
    pub(super) inner: usize,
}

impl Part {
    pub(super) fn of<E: Element>(left: &[ArrayView2<'_, E>; 2]) -> [Part; 2] {
        let size = size_of::<E>() as isize;
        [0, 1].map(|part: usize| Part {
            start: left[part].as_ptr().cast(),
            row_stride: left[part].strides()[0] * size,
            stride: left[part].strides()[1] * size,
            inner: left[part].ncols(),
        })
    }

    /// Where an element lies.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, index: usize) -> *const u8 {
        self.start.wrapping_offset(row as isize * self.row_stride + index as isize * self.stride)
    }
}

/// A corner of the product: some left rows, the whole or a part of the inner dimension, and a panel or the
/// half of one.
#[derive(Clone, Copy)]
struct Corner {
    parts: [Part; 2],
    top: usize,
    /// Begin and end in the inner dimension.
    inner: (usize, usize),
    right: *const u8,
    right_stride: usize,
    out: *mut u8,
    out_stride: isize,
    width: usize,
}

/// Adds a product whose result has adjacent columns to it.
///
/// # Safety
/// The caller has the instruction set of `V` enabled, and `V` works on words of the size of `E`.
#[inline(always)]
pub(super) unsafe fn multiply_add<E: Element, V: Lanes, const VECTORS: usize>(product: &mut Product<'_, E>) {
    assert!(product.has_adjacent_columns(), "the columns of the result are not adjacent");
    let size = size_of::<E>() as isize;
    let parts = Part::of(product.left());
    let (right, rows) = (product.right(), product.rows());
    let (inner, elements) = (right.rows(), right.elements().as_ptr());
    let (out_stride, out) = (product.out().strides()[0] * size, product.out().as_mut_ptr());
    let heights = Heights::new(rows, V::MAX_ROWS);
    // A few rows pass over everything once: results are then touched once, too.
    let block = if rows <= FEW_ROWS { inner } else { V::BLOCK };
    let many = heights.align(V::LEFT_BYTES / (block * E::BYTES));
    for first_row in (0..rows).step_by(many) {
        let rows = first_row..rows.min(first_row + many);
        for start in (0..inner).step_by(block) {
            let range = (start, inner.min(start + block));
            for panel in right.panels() {
                let tile_columns = VECTORS * V::BYTES / E::BYTES;
                for offset in (0..panel.width).step_by(tile_columns) {
                    let Panel { first, width, stride, start } = panel;
                    // SAFETY: `offset < width <= stride` lies in the panel, which lies in `elements`, and
                    // `first + offset` is a column of the result.
                    let (line, target) = unsafe { (elements.add(start + offset), out.add(first + offset)) };
                    for top in rows.clone().step_by(heights.height) {
                        let height = heights.height.min(rows.end - top);
                        let corner = Corner {
                            parts,
                            top,
                            inner: range,
                            right: line.cast(),
                            right_stride: stride * E::BYTES,
                            out: target.cast(),
                            out_stride,
                            width: (width - offset).min(tile_columns),
                        };
                        // SAFETY: `top + height <= rows`; a tile reads `VECTORS` vectors from `offset`
                        // on, and where the panel is narrower (one cache line), one line's worth.
                        unsafe {
                            if (stride - offset) * E::BYTES >= VECTORS * V::BYTES {
                                corner.add_rows::<E, V, VECTORS>(height);
                            } else {
                                const { assert!(VECTORS * V::BYTES <= 2 * LINE_BYTES) };
                                corner.add_rows::<E, V, 1>(height);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Tiles of about equal height: nine rows are five and four rather than eight and one.
#[derive(Clone, Copy)]
struct Heights {
    height: usize,
}

impl Heights {
    fn new(rows: usize, most: usize) -> Self {
        Heights { height: rows.div_ceil(rows.div_ceil(most)) }
    }

    /// The multiple of a tile's height that is about `rows`.
    fn align(self, rows: usize) -> usize {
        (rows / self.height).max(1) * self.height
    }
}

impl Corner {
    /// # Safety
    /// `height <= V::MAX_ROWS <= 8`; otherwise as [`Self::add_tile`].
    #[inline(always)]
    unsafe fn add_rows<E: Element, V: Lanes, const VECTORS: usize>(&self, height: usize) {
        // Heights beyond the registers of an instruction set are not compiled for it.
        macro_rules! tiles {
            ($($rows:literal)*) => {
                match height {
                    // SAFETY: passed on to the caller.
                    $($rows if $rows <= V::MAX_ROWS => unsafe { self.add_tile::<E, V, $rows, VECTORS>() },)*
                    _ => unreachable!("a tile has one to MAX_ROWS rows"),
                }
            };
        }
        tiles!(1 2 3 4 5 6 7 8);
    }

    /// Adds the product of `ROWS` left rows and `VECTORS` vectors of columns to the result.
    ///
    /// # Safety
    /// Left rows `top .. top + ROWS` exist, `inner` lies within the panel's rows, each of which has
    /// `VECTORS` vectors at `right`, and `width` columns of the result exist at `out`.
    #[inline(always)]
    unsafe fn add_tile<E: Element, V: Lanes, const ROWS: usize, const VECTORS: usize>(&self) {
        // SAFETY: the intersection of `inner` with each part's share of the inner dimension bounds all
        // indices; see the function's contract for the rest.
        unsafe {
            let mut sums = [[V::zero(); VECTORS]; ROWS];
            let mut first = 0;
            for part in &self.parts {
                let start = self.inner.0.clamp(first, first + part.inner);
                let end = self.inner.1.clamp(first, first + part.inner);
                let mut line = self.right.add(start * self.right_stride);
                let mut lefts = [part.start; ROWS];
                for (row, left) in lefts.iter_mut().enumerate() {
                    *left = part.at(self.top + row, start - first);
                }
                let mut offset = 0;
                for _ in start..end {
                    // One row waits for memory all the same, and in the cache it would only be slowed down.
                    if ROWS > 1 {
                        for i in 0..(VECTORS * V::BYTES).div_ceil(LINE_BYTES) {
                            V::prefetch(line.wrapping_add(PREFETCH_BYTES + i * LINE_BYTES));
                        }
                    }
                    // A loop, as a closure would be compiled without the instruction set.
                    let mut right = [V::load(line); VECTORS];
                    for (i, vector) in right.iter_mut().enumerate().skip(1) {
                        *vector = V::load(line.add(i * V::BYTES));
                    }
                    for row in 0..ROWS {
                        let left = V::spread(lefts[row].offset(offset));
                        for column in 0..VECTORS {
                            sums[row][column] = V::multiply_add(sums[row][column], left, right[column]);
                        }
                    }
                    offset += part.stride;
                    line = line.wrapping_add(self.right_stride);
                }
                first += part.inner;
            }
            for (row, sums) in sums.iter().enumerate() {
                let target = self.out.offset((self.top + row) as isize * self.out_stride);
                if self.width * E::BYTES == VECTORS * V::BYTES {
                    for (column, &sum) in sums.iter().enumerate() {
                        V::add_to(target.add(column * V::BYTES), sum);
                    }
                } else {
                    let mut line = [E::ZERO; 2 * LINE_BYTES / 4];
                    for (column, &sum) in sums.iter().enumerate() {
                        V::add_to(line.as_mut_ptr().cast::<u8>().add(column * V::BYTES), sum);
                    }
                    let target = target.cast::<E>();
                    for (column, &sum) in line[..self.width].iter().enumerate() {
                        *target.add(column) += sum;
                    }
                }
            }
        }
    }
}
