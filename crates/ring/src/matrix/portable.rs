//! The kernel that every machine can run: a register tile over the panels.

use ndarray::{ArrayView2, ArrayViewMut2, s};

use super::panels::LINE_BYTES;
use super::product::Product;
use crate::element::Element;
use crate::wipe::wipe;

/// Rows of a panel that stay in the first-level cache while all left rows pass over them.
const BLOCK: usize = 256;

pub(super) fn multiply_add<E: Element>(product: &mut Product<'_, E>) {
    // A cache line of sums for each of four rows stays in reach of the registers.
    match LINE_BYTES / E::BYTES {
        8 => multiply_lines::<E, 8>(product),
        16 => multiply_lines::<E, 16>(product),
        _ => unreachable!("elements have 4 or 8 bytes"),
    }
}

fn multiply_lines<E: Element, const COLUMNS: usize>(product: &mut Product<'_, E>) {
    // Rows of the left operand that are multiplied at once: as many as compilers keep in registers.
    let tile_rows = if E::BITS == 64 { 3 } else { 4 };
    let right = product.right();
    let rows = product.rows();
    let mut first_row = 0;
    for part in 0..product.left().len() {
        let left = product.left()[part];
        let inner = left.ncols();
        // Columns of one owner among many are rows with gaps between them, which need no copy; only a
        // transposed view does.
        let standard = (left.strides()[1] != 1).then(|| left.as_standard_layout());
        let left = standard.as_ref().map_or(left.view(), |matrix| matrix.view());
        let lines: Vec<&[E]> = (0..if inner == 0 { 0 } else { rows })
            .map(|i| left.row(i).to_slice().expect("elements of a row are adjacent by now"))
            .collect();
        for panel in right.panels() {
            let elements =
                &right.elements()[panel.start + first_row * panel.stride..][..inner * panel.stride];
            for offset in (0..panel.width).step_by(COLUMNS) {
                let width = COLUMNS.min(panel.width - offset);
                let columns = panel.first + offset..panel.first + offset + width;
                for start in (0..inner).step_by(BLOCK) {
                    let end = inner.min(start + BLOCK);
                    let block =
                        Block { elements: &elements[start * panel.stride..], stride: panel.stride, offset };
                    for top in (0..rows).step_by(tile_rows) {
                        let bottom = rows.min(top + tile_rows);
                        let out = product.out().slice_mut(s![top..bottom, columns.clone()]);
                        let row = |i: usize| &lines[top + i][start..end];
                        // A single query is one row: a tile of its height does a quarter of the work.
                        match out.nrows() {
                            1 => add_tile::<E, 1, COLUMNS>([row(0)], block, out),
                            2 => add_tile::<E, 2, COLUMNS>([row(0), row(1)], block, out),
                            3 => add_tile::<E, 3, COLUMNS>([row(0), row(1), row(2)], block, out),
                            _ => add_tile::<E, 4, COLUMNS>([row(0), row(1), row(2), row(3)], block, out),
                        }
                    }
                }
            }
        }
        drop(lines);
        wipe_copy(standard);
        first_row += inner;
    }
}

/// Overwrites the copy of a left operand, if there is one.
fn wipe_copy<E: Element>(copy: Option<ndarray::CowArray<'_, E, ndarray::Ix2>>) {
    if let Some(copy) = copy.filter(|copy| copy.is_owned()) {
        let (mut elements, _) = copy.into_owned().into_raw_vec_and_offset();
        wipe(&mut elements);
    }
}

/// Some rows of a panel, and the first of its columns that count.
#[derive(Clone, Copy)]
struct Block<'a, E> {
    elements: &'a [E],
    stride: usize,
    offset: usize,
}

/// Adds the product of `ROWS` left rows and a block of a panel to a corner of the result.
#[inline]
fn add_tile<E: Element, const ROWS: usize, const COLUMNS: usize>(
    left: [&[E]; ROWS],
    block: Block<'_, E>,
    mut out: ArrayViewMut2<'_, E>,
) {
    let mut sums = [[E::ZERO; COLUMNS]; ROWS];
    let inner = left[0].len();
    // Equal lengths, known before the loop, spare it the bounds checks.
    let left = left.map(|row| &row[..inner]);
    for (k, line) in block.elements.chunks_exact(block.stride).take(inner).enumerate() {
        let line: &[E; COLUMNS] =
            line[block.offset..].first_chunk().expect("a line of the panel has the columns of a tile");
        for row in 0..ROWS {
            let factor = left[row][k];
            for column in 0..COLUMNS {
                sums[row][column] += factor * line[column];
            }
        }
    }
    for (mut target, sums) in out.rows_mut().into_iter().zip(&sums) {
        target.iter_mut().zip(sums).for_each(|(element, &sum)| *element += sum);
    }
}

/// The definition, which the self-check compares kernels with.
pub(super) fn definition<E: Element>(
    left: ArrayView2<'_, E>,
    right: ArrayView2<'_, E>,
) -> ndarray::Array2<E> {
    ndarray::Array2::from_shape_fn((left.nrows(), right.ncols()), |(i, j)| {
        (0..left.ncols()).fold(E::ZERO, |sum, k| sum + left[(i, k)] * right[(k, j)])
    })
}
