//! The kernel that every machine can run: a register tile over packed column panels.
//!
//! Panel `p` holds columns `p * PANEL ..` of the right operand, row by row and padded with zeros,
//! so that the inner loop reads it front to back.

use ndarray::{ArrayView2, ArrayViewMut2, s};

use crate::element::Element;

/// Columns of a panel: 8 elements of 64 bits are a cache line, and four rows of sums stay in reach of the
/// registers.
const PANEL: usize = 8;
/// Rows of the left operand that are multiplied at once.
const TILE_ROWS: usize = 4;
/// Rows of a panel that stay in the first-level cache while all left rows pass over them.
const BLOCK: usize = 256;

/// Packs the right operand into panels.
pub(super) fn pack<E: Element>(matrix: ArrayView2<'_, E>) -> Vec<E> {
    let (rows, columns) = matrix.dim();
    let mut panels = Vec::with_capacity(columns.next_multiple_of(PANEL) * rows);
    for first in (0..columns).step_by(PANEL) {
        let last = columns.min(first + PANEL);
        for row in matrix.slice(s![.., first..last]).rows() {
            panels.extend(row.iter());
            panels.extend(std::iter::repeat_n(E::ZERO, PANEL - (last - first)));
        }
    }
    panels
}

/// Adds `left * right` to `out`; the caller has checked the shapes.
pub(super) fn multiply_add<E: Element>(left: ArrayView2<'_, E>, panels: &[E], mut out: ArrayViewMut2<'_, E>) {
    let (rows, inner) = left.dim();
    let columns = out.ncols();
    if rows == 0 || inner == 0 || columns == 0 {
        return;
    }
    // Columns of one owner among many are rows with gaps between them, which need no copy; only a
    // transposed view does.
    let standard = (left.strides()[1] != 1).then(|| left.as_standard_layout());
    let left = standard.as_ref().map_or(left.view(), |matrix| matrix.view());
    let lines: Vec<&[E]> =
        (0..rows).map(|i| left.row(i).to_slice().expect("elements of a row are adjacent by now")).collect();
    for (panel, first) in panels.chunks_exact(inner * PANEL).zip((0..columns).step_by(PANEL)) {
        let width = PANEL.min(columns - first);
        for start in (0..inner).step_by(BLOCK) {
            let end = inner.min(start + BLOCK);
            let block = &panel[start * PANEL..end * PANEL];
            for top in (0..rows).step_by(TILE_ROWS) {
                let out = out.slice_mut(s![top..rows.min(top + TILE_ROWS), first..first + width]);
                let row = |i: usize| &lines[top + i][start..end];
                // A single query is one row: a tile of its height does a quarter of the work.
                match out.nrows() {
                    1 => add_tile([row(0)], block, out),
                    2 => add_tile([row(0), row(1)], block, out),
                    3 => add_tile([row(0), row(1), row(2)], block, out),
                    _ => add_tile([row(0), row(1), row(2), row(3)], block, out),
                }
            }
        }
    }
}

/// Adds the product of `ROWS` left rows and a block of a panel to a corner of the result.
#[inline]
fn add_tile<E: Element, const ROWS: usize>(left: [&[E]; ROWS], block: &[E], mut out: ArrayViewMut2<'_, E>) {
    let mut sums = [[E::ZERO; PANEL]; ROWS];
    // Equal lengths, known before the loop, spare it the bounds checks.
    let (lines, _) = block.as_chunks::<PANEL>();
    let left = left.map(|row| &row[..lines.len()]);
    for (k, line) in lines.iter().enumerate() {
        for row in 0..ROWS {
            let factor = left[row][k];
            for column in 0..PANEL {
                sums[row][column] += factor * line[column];
            }
        }
    }
    for (mut target, sums) in out.rows_mut().into_iter().zip(&sums) {
        target.iter_mut().zip(sums).for_each(|(element, &sum)| *element += sum);
    }
}
