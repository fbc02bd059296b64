//! The kernel that every machine can run: a register tile over packed column panels.
//!
//! Panel `p` holds columns `p * PANEL ..` of the right operand, row by row and padded with zeros,
//! so that the inner loop reads it front to back.

use ndarray::{ArrayView2, ArrayViewMut2, s};

use crate::element::Element;

/// Columns of a panel: 16 elements of 64 bits are two cache lines.
const PANEL: usize = 16;
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
                let height = TILE_ROWS.min(rows - top);
                // A short tile repeats its last row; the repeats are not written back.
                let row = |i: usize| &lines[top + i.min(height - 1)][start..end];
                let sums = tile([row(0), row(1), row(2), row(3)], block);
                for (i, sum) in sums.iter().enumerate().take(height) {
                    let mut target = out.slice_mut(s![top + i, first..first + width]);
                    target.iter_mut().zip(sum).for_each(|(element, &value)| *element += value);
                }
            }
        }
    }
}

#[inline]
fn tile<E: Element>(left: [&[E]; TILE_ROWS], block: &[E]) -> [[E; PANEL]; TILE_ROWS] {
    let mut sums = [[E::ZERO; PANEL]; TILE_ROWS];
    let [a, b, c, d] = left;
    for ((((line, &a), &b), &c), &d) in block.chunks_exact(PANEL).zip(a).zip(b).zip(c).zip(d) {
        for (column, &value) in line.iter().enumerate() {
            sums[0][column] += a * value;
            sums[1][column] += b * value;
            sums[2][column] += c * value;
            sums[3][column] += d * value;
        }
    }
    sums
}
