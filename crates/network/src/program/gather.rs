//! Numbers of one or several values in another order, repeated, left out or replaced by zero.
//!
//! A piece of the result runs over the product of its axes, the last one fastest; the place that it
//! reads is the sum of an offset and of what each axis adds. This holds slices, transpositions,
//! repetitions, joins and the padding of an image in a few numbers, where a list of places would take
//! one for each number of the result.

use serde::{Deserialize, Serialize};

use super::ProgramError;
use crate::limits::{MAXIMUM_AXES, MAXIMUM_PIECES, MAXIMUM_SIZE};

/// The pieces of a result, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gather {
    /// The pieces.
    pub pieces: Vec<Piece>,
}

/// A part of a result that comes from one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// Which of the step's values is read, counted from 0.
    pub value: usize,
    /// Where.
    pub offset: usize,
    /// The axes that it runs over; without any it is one number.
    pub axes: Vec<Axis>,
}

/// What one axis of a piece adds to the place that is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Count and stride: the i-th of `count` adds `i * stride`.
    Regular(usize, i64),
    /// What each adds; `null` for zeros, which are read nowhere.
    Listed(Vec<Option<i64>>),
}

impl Axis {
    fn count(&self) -> usize {
        match self {
            Self::Regular(count, _) => *count,
            Self::Listed(places) => places.len(),
        }
    }

    fn place(&self, index: usize) -> Option<i64> {
        match self {
            Self::Regular(_, stride) => Some(index as i64 * stride),
            Self::Listed(places) => places[index],
        }
    }

    /// The least and the most that it adds.
    fn extent(&self) -> (i128, i128) {
        match self {
            Self::Regular(count, stride) => {
                let last = (*count as i128 - 1) * i128::from(*stride);
                (last.min(0), last.max(0))
            }
            Self::Listed(places) => {
                let known = || places.iter().flatten().map(|&place| i128::from(place));
                (known().min().unwrap_or(0), known().max().unwrap_or(0))
            }
        }
    }

    /// The shortest form of a list.
    fn of(places: Vec<Option<i64>>) -> Self {
        let stride = match places[..] {
            [Some(first), Some(second), ..] => second.saturating_sub(first),
            _ => 0,
        };
        let regular = places.iter().enumerate().all(|(index, &place)| place == Some(index as i64 * stride));
        if regular { Self::Regular(places.len(), stride) } else { Self::Listed(places) }
    }
}

impl Piece {
    /// The piece of a value that reads `places`, of a result of the given shape in row-major order, or
    /// `None` when the axes do not add up independently, or nothing is read.
    #[must_use]
    pub fn of_places(shape: &[usize], places: &[Option<usize>]) -> Option<Self> {
        let first = places.iter().position(Option::is_some)?;
        let offset = places[first]?;
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        let at = |index: usize| places[index].map(|place| place as i64 - offset as i64);
        let lists: Vec<Vec<Option<i64>>> = shape
            .iter()
            .zip(&strides)
            .map(|(&count, &stride)| {
                let origin = first - first / stride % count * stride;
                (0..count).map(|index| at(origin + index * stride)).collect()
            })
            .collect();
        let adds_up = (0..places.len()).all(|index| {
            let sum =
                lists.iter().zip(shape).zip(&strides).try_fold(0_i64, |sum, ((list, &count), &stride)| {
                    list[index / stride % count].map(|place| sum + place)
                });
            sum == at(index)
        });
        // The offset must be that of the first index of regular axes.
        let mut offset = offset as i64;
        let mut axes = Vec::with_capacity(lists.len());
        for list in lists {
            let shift = list[0].unwrap_or(0);
            offset += shift;
            axes.push(Axis::of(list.into_iter().map(|place| place.map(|place| place - shift)).collect()));
        }
        let offset = usize::try_from(offset).ok()?;
        adds_up.then_some(Self { value: 0, offset, axes })
    }

    fn count(&self) -> usize {
        self.axes.iter().map(Axis::count).fold(1, usize::saturating_mul)
    }

    fn check(&self, step: usize, arriving: &[usize]) -> Result<usize, ProgramError> {
        let limit = |name, found: usize, minimum: usize, maximum: usize| {
            if (minimum..=maximum).contains(&found) {
                Ok(())
            } else {
                Err(ProgramError::Limit { step, name, found, minimum, maximum })
            }
        };
        limit("value of a piece", self.value, 0, arriving.len() - 1)?;
        limit("number of axes", self.axes.len(), 0, MAXIMUM_AXES)?;
        let (mut least, mut most) = (self.offset as i128, self.offset as i128);
        for axis in &self.axes {
            limit("length of an axis", axis.count(), 1, MAXIMUM_SIZE)?;
            let (low, high) = axis.extent();
            least += low;
            most += high;
        }
        limit("number of outputs", self.count(), 1, MAXIMUM_SIZE)?;
        let last = arriving[self.value] - 1;
        for place in [least, most] {
            let found = usize::try_from(place).unwrap_or(usize::MAX);
            limit("place that is read", found, 0, last)?;
        }
        Ok(self.count())
    }
}

impl Gather {
    /// Checks the pieces against the sizes of the values, and gives the size of the result.
    pub(super) fn check(&self, step: usize, arriving: &[usize]) -> Result<usize, ProgramError> {
        let (name, found) = ("number of pieces", self.pieces.len());
        if !(1..=MAXIMUM_PIECES).contains(&found) {
            return Err(ProgramError::Limit { step, name, found, minimum: 1, maximum: MAXIMUM_PIECES });
        }
        self.pieces.iter().try_fold(0_usize, |size, piece| Ok(size + piece.check(step, arriving)?))
    }

    /// For each number of the result, which of the step's values it is read from and where; `None` for
    /// zero.
    #[must_use]
    pub fn sources(&self) -> Vec<Option<(usize, usize)>> {
        let mut sources = Vec::with_capacity(self.pieces.iter().map(Piece::count).sum());
        for piece in &self.pieces {
            let mut counter = vec![0; piece.axes.len()];
            for _ in 0..piece.count() {
                let places = piece.axes.iter().zip(&counter).map(|(axis, &index)| axis.place(index));
                let place = places.into_iter().sum::<Option<i64>>();
                sources.push(place.map(|place| (piece.value, (piece.offset as i64 + place) as usize)));
                for (index, axis) in counter.iter_mut().zip(&piece.axes).rev() {
                    *index += 1;
                    if *index < axis.count() {
                        break;
                    }
                    *index = 0;
                }
            }
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(shape: &[usize], places: &[Option<usize>]) -> Piece {
        let piece = Piece::of_places(shape, places).expect("the axes add up");
        let gather = Gather { pieces: vec![piece.clone()] };
        let found: Vec<_> =
            gather.sources().into_iter().map(|source| source.map(|(_, place)| place)).collect();
        assert_eq!(found, places);
        assert_eq!(gather.check(0, &[100]), Ok(places.len()));
        piece
    }

    #[test]
    fn slices_transpositions_and_reversals_are_regular() {
        let transposed = round_trip(&[3, 2], &[0, 3, 1, 4, 2, 5].map(Some));
        assert_eq!(
            (transposed.offset, &transposed.axes[..]),
            (0, &[Axis::Regular(3, 1), Axis::Regular(2, 3)][..])
        );
        let reversed = round_trip(&[4], &[9, 7, 5, 3].map(Some));
        assert_eq!((reversed.offset, &reversed.axes[..]), (9, &[Axis::Regular(4, -2)][..]));
        round_trip(&[2, 2], &[7, 7, 7, 7].map(Some));
        round_trip(&[], &[Some(4)]);
    }

    #[test]
    fn padding_is_listed() {
        let piece = round_trip(&[2, 3], &[None, None, None, None, Some(5), Some(6)]);
        assert_eq!(piece.offset, 5);
        assert_eq!(Piece::of_places(&[2], &[None, None]), None);
        // No sum of one number for each row and one for each column.
        assert_eq!(Piece::of_places(&[2, 2], &[0, 1, 2, 4].map(Some)), None);
    }

    #[test]
    fn places_outside_of_the_values_are_refused() {
        let refused = |piece: Piece| {
            Gather { pieces: vec![piece] }.check(3, &[10, 4]).expect_err("must be refused").to_string()
        };
        let piece = |value, offset, axes: Vec<Axis>| Piece { value, offset, axes };
        assert!(refused(piece(2, 0, vec![])).contains("step 3: value of a piece is 2"));
        assert!(refused(piece(1, 4, vec![])).contains("place that is read is 4"));
        assert!(refused(piece(0, 2, vec![Axis::Regular(4, -1)])).contains("place that is read"));
        assert!(refused(piece(0, 0, vec![Axis::Regular(usize::MAX, 0)])).contains("length of an axis"));
        assert!(refused(piece(0, 0, vec![Axis::Regular(2, i64::MIN); 2])).contains("place that is read"));
        assert!(
            refused(piece(0, 0, vec![Axis::Listed(vec![Some(i64::MAX)]); 16])).contains("place that is read")
        );
        assert!(refused(piece(0, 0, vec![Axis::Regular(60_000, 0); 2])).contains("number of outputs"));
        assert!(refused(piece(0, 0, vec![Axis::Regular(1, 0); 17])).contains("number of axes"));
        assert!(refused(piece(0, usize::MAX, vec![])).contains("place that is read"));
        assert!(refused(piece(0, 0, vec![Axis::Listed(vec![])])).contains("length of an axis is 0"));
        assert!(Gather { pieces: vec![] }.check(0, &[1]).is_err());
    }
}
