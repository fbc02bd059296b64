//! The memory layout of the right operand, which all kernels share.
//!
//! A panel holds some adjacent columns, row by row, so that a product reads it front to back. Panels
//! are two cache lines wide, except that the last one is a single line when no more columns are left.
//! Columns that fill up a line are zero.

use bytemuck::{Pod, Zeroable};
use ndarray::ArrayView2;

use crate::element::Element;
use crate::wipe::wipe;

/// Bytes of a cache line, and of the widest vector register.
pub(super) const LINE_BYTES: usize = 64;
/// Cache lines of a row of a panel.
const PANEL_LINES: usize = 2;

/// Aligned, so that no vector of a panel lies across two cache lines.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct CacheLine([u8; LINE_BYTES]);

/// A matrix in panels. The memory is overwritten when it is dropped.
pub(super) struct Panels<E: Element> {
    rows: usize,
    columns: usize,
    lines: Vec<CacheLine>,
    element: std::marker::PhantomData<E>,
}

/// Where a panel lies.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    /// The first of its columns.
    pub(super) first: usize,
    /// How many columns of the matrix it has.
    pub(super) width: usize,
    /// Elements of a row, padding included: one or two cache lines.
    pub(super) stride: usize,
    /// The index of its first element.
    pub(super) start: usize,
}

impl<E: Element> Panels<E> {
    /// Columns of a panel of full width.
    pub(super) const COLUMNS: usize = PANEL_LINES * LINE_BYTES / E::BYTES;

    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        let lines = vec![CacheLine::zeroed(); columns.div_ceil(LINE_BYTES / E::BYTES) * rows];
        Panels { rows, columns, lines, element: std::marker::PhantomData }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.lines.len() * LINE_BYTES
    }

    /// All panels, one after the other.
    pub(super) fn elements(&self) -> &[E] {
        bytemuck::cast_slice(&self.lines)
    }

    pub(super) fn panel(&self, index: usize) -> Panel {
        let first = index * Self::COLUMNS;
        let width = (self.columns - first).min(Self::COLUMNS);
        let stride = width.next_multiple_of(LINE_BYTES / E::BYTES);
        Panel { first, width, stride, start: first * self.rows }
    }

    pub(super) fn panels(&self) -> impl Iterator<Item = Panel> + '_ {
        (0..self.columns.div_ceil(Self::COLUMNS)).map(|index| self.panel(index))
    }

    /// Adds a block whose upper left corner is `(row, column)`; the caller has checked that it fits.
    pub(super) fn add(&mut self, row: usize, column: usize, block: ArrayView2<'_, E>) {
        let panels: Vec<Panel> = self.panels().collect();
        let elements: &mut [E] = bytemuck::cast_slice_mut(&mut self.lines);
        let end = column + block.ncols();
        for panel in panels.iter().filter(|panel| panel.first < end && column < panel.first + panel.width) {
            let columns = panel.first.max(column)..(panel.first + panel.width).min(end);
            for (index, source) in block.rows().into_iter().enumerate() {
                let start = panel.start + (row + index) * panel.stride;
                let target = &mut elements[start + columns.start - panel.first..];
                let source = source.into_iter().skip(columns.start - column).take(columns.len());
                target.iter_mut().zip(source).for_each(|(element, &addend)| *element += addend);
            }
        }
    }
}

impl<E: Element> Drop for Panels<E> {
    fn drop(&mut self) {
        wipe(&mut self.lines);
    }
}
