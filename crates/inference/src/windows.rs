//! Numbers of a value in another order: gathers, and the windows of a convolution.
//!
//! Places are followed run by run along the last axis, so that nothing is kept for each of them and
//! most of the work is copying adjacent numbers.

use std::ops::Range;

use concilium_network::Convolution;
use concilium_network::program::gather::{Axis, Gather, Piece};
use concilium_ring::Element;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

/// A [`Gather`] of values `[rows, size]` whose rows are adjacent numbers.
pub(crate) fn gather<E: Element>(gather: &Gather, values: &[ArrayView2<'_, E>]) -> Array2<E> {
    let counts: Vec<usize> =
        gather.pieces.iter().map(|piece| piece.axes.iter().map(count).product()).collect();
    let mut gathered = Array2::from_elem((values[0].nrows(), counts.iter().sum()), E::ZERO);
    let mut first = 0;
    for (piece, count) in gather.pieces.iter().zip(counts) {
        gather_piece(piece, values[piece.value], gathered.view_mut(), first);
        first += count;
    }
    gathered
}

fn count(axis: &Axis) -> usize {
    match axis {
        Axis::Regular(count, _) => *count,
        Axis::Listed(places) => places.len(),
    }
}

/// What one index of an axis adds to the place that is read; `None` for a zero.
fn place(axis: &Axis, index: usize) -> Option<i64> {
    match axis {
        Axis::Regular(_, stride) => Some(index as i64 * stride),
        Axis::Listed(places) => places[index],
    }
}

/// Writes a piece to the columns from `first` on, which hold zeros.
fn gather_piece<E: Element>(
    piece: &Piece,
    value: ArrayView2<'_, E>,
    mut out: ArrayViewMut2<'_, E>,
    first: usize,
) {
    let single = Axis::Regular(1, 0);
    let (last, outer) = piece.axes.split_last().unwrap_or((&single, &[]));
    let length = count(last);
    let mut counter = vec![0; outer.len()];
    for run in 0..outer.iter().map(count).product() {
        let steps = outer.iter().zip(&counter).map(|(axis, &index)| place(axis, index));
        if let Some(sum) = steps.sum::<Option<i64>>() {
            let start = piece.offset as i64 + sum;
            let columns = first + run * length..first + (run + 1) * length;
            for (source, mut target) in value.outer_iter().zip(out.outer_iter_mut()) {
                let source = source.to_slice().expect("rows are adjacent numbers");
                let target = &mut target.as_slice_mut().expect("rows are adjacent numbers")[columns.clone()];
                copy_run(last, start, source, target);
            }
        }
        for (index, axis) in counter.iter_mut().zip(outer).rev() {
            *index += 1;
            if *index < count(axis) {
                break;
            }
            *index = 0;
        }
    }
}

fn copy_run<E: Element>(axis: &Axis, start: i64, source: &[E], target: &mut [E]) {
    match axis {
        Axis::Regular(count, 1) => target.copy_from_slice(&source[start as usize..start as usize + count]),
        Axis::Regular(_, stride) => {
            for (index, target) in target.iter_mut().enumerate() {
                *target = source[(start + index as i64 * stride) as usize];
            }
        }
        Axis::Listed(places) => {
            for (target, place) in target.iter_mut().zip(places) {
                if let Some(place) = place {
                    *target = source[(start + place) as usize];
                }
            }
        }
    }
}

/// Overwrites `windows` with the windows of a group at `positions`, for all rows of `values`: row
/// `r * positions.len() + p` is that of row `r` at the p-th position, in the order channel, row, column.
pub(crate) fn gather_windows<E: Element>(
    convolution: &Convolution,
    group: usize,
    positions: Range<usize>,
    values: ArrayView2<'_, E>,
    windows: &mut [E],
) {
    let [height, width] = convolution.size;
    let [kernel_height, kernel_width] = convolution.kernel;
    let across = convolution.output_size()[1];
    let channels = convolution.channels[0] / convolution.groups;
    let inner = channels * kernel_height * kernel_width;
    let mut targets = windows.chunks_exact_mut(inner);
    for value in values.outer_iter() {
        let value = value.to_slice().expect("rows are adjacent numbers");
        for position in positions.clone() {
            let target = targets.next().expect("there is a window for each row and position");
            // Where the window's first element stands, with zeros above and to the left counted in.
            let top = (position / across) * convolution.strides[0];
            let left = (position % across) * convolution.strides[1];
            let taken = left
                .checked_sub(convolution.pads[1])
                .filter(|&first| convolution.dilations[1] == 1 && first + kernel_width <= width);
            for (run, target) in target.chunks_exact_mut(kernel_width).enumerate() {
                let channel = group * channels + run / kernel_height;
                let row = top + run % kernel_height * convolution.dilations[0];
                let Some(row) = row.checked_sub(convolution.pads[0]).filter(|&row| row < height) else {
                    target.fill(E::ZERO);
                    continue;
                };
                let line = &value[(channel * height + row) * width..][..width];
                if let Some(first) = taken {
                    target.iter_mut().zip(&line[first..]).for_each(|(target, &number)| *target = number);
                    continue;
                }
                for (tap, target) in target.iter_mut().enumerate() {
                    let column = (left + tap * convolution.dilations[1]).checked_sub(convolution.pads[1]);
                    *target = column.and_then(|column| line.get(column)).copied().unwrap_or(E::ZERO);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use concilium_network::program::{Affine, Operation, evaluate};
    use concilium_ring::Z64;
    use proptest::prelude::*;

    use super::*;

    fn numbers(rows: usize, columns: usize) -> Array2<Z64> {
        Array2::from_shape_fn((rows, columns), |(row, column)| {
            Z64::from_unsigned((row * 1000 + column + 1) as u64)
        })
    }

    fn axis() -> impl Strategy<Value = Axis> {
        prop_oneof![
            (1usize..5, -3i64..4).prop_map(|(count, stride)| Axis::Regular(count, stride)),
            prop::collection::vec(prop::option::of(-6i64..7), 1..5).prop_map(Axis::Listed),
        ]
    }

    proptest! {
        #[test]
        fn gathers_are_those_of_the_program(
            pieces in prop::collection::vec((0usize..2, prop::collection::vec(axis(), 0..4)), 1..4),
            rows in 1usize..4,
        ) {
            let pieces = pieces.into_iter().map(|(value, axes)| Piece { value, offset: 40, axes }).collect();
            let values = [numbers(rows, 81), numbers(rows, 90)];
            let views = [values[0].view(), values[1].view()];
            let operation = Operation::Gather(Gather { pieces });
            let expected = evaluate::linear(&operation, &views).expect("a gather exchanges no messages");
            let Operation::Gather(gathered) = &operation else { unreachable!("it was made above") };
            prop_assert_eq!(gather(gathered, &views), expected);
        }

        #[test]
        fn windows_are_those_of_the_program(
            per_group in 1usize..3,
            groups in 1usize..3,
            size in prop::array::uniform2(3usize..8),
            kernel in prop::array::uniform2(1usize..4),
            strides in prop::array::uniform2(1usize..3),
            dilations in prop::array::uniform2(1usize..3),
            pads in prop::array::uniform4(0usize..3),
            rows in 1usize..4,
        ) {
            let channels = [per_group * groups, groups];
            let convolution = Convolution { channels, groups, size, kernel, strides, dilations, pads };
            prop_assume!(convolution.output_size().iter().all(|&count| count > 0));
            let affine = Affine::convolution(convolution);
            let values = numbers(rows, affine.inputs());
            for group in 0..groups {
                let positions = affine.positions / 3..affine.positions;
                let expected = affine.windows(group, positions.clone(), values.view(), Z64::ZERO);
                let mut found = vec![Z64::ONE; rows * positions.len() * affine.inner];
                gather_windows(&convolution, group, positions, values.view(), &mut found);
                prop_assert_eq!(&found, expected.as_slice().expect("it is in standard layout"));
            }
        }
    }
}
