//! From numbers to one-hot votes.

use concilium_ring::Element;

use crate::boolean::and_planes;
use crate::channel::Channel;
use crate::comparison;
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::{BitShares, Shares};

/// All pairs of columns i < j.
fn pairs(classes: usize) -> Vec<(usize, usize)> {
    (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j))).collect()
}

/// A one-hot bit for the largest element of every row of `scores`, `[n, classes]`: plane c holds
/// whether column c wins, for each of the n rows. Ties go to the lower column.
///
/// All pairs are compared at once: b_ij = [x_i >= x_j] for i < j. Column i wins if b_ij holds for
/// all j > i and no b_ji holds for j < i.
///
/// **At most one bit of a row is set, whatever the scores are**, even if differences leave the
/// window: winning takes b_ij for i and its complement for j, and both come from the same shared
/// bit. This bound on a vote is what the privacy of the answer rests on; it needs no honest owner.
/// With differences inside the window exactly one bit is set.
///
/// # Cost
/// One batch of n classes (classes - 1) / 2 comparisons and ceil(log2(classes - 1)) AND rounds.
/// The first comparison round can coincide with the rescaling before it, see [`comparison`].
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If there are fewer than two columns, or the window does not fit the ring.
pub fn one_hot_argmax<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    scores: &Shares<E>,
    window: u32,
) -> Result<BitShares, MpcError> {
    let (rows, classes) = scores.dim();
    assert!(classes >= 2, "a vote needs at least two classes");
    let pairs = pairs(classes);
    let less = comparison::sign(party, dealer, &scores.column_differences(&pairs), window)?;
    let mut planes = less.into_planes(pairs.len(), rows).twice();
    planes.flip_planes(party.index(), pairs.len()..2 * pairs.len());
    let less = |i: usize, j: usize| i * classes - i * (i + 1) / 2 + (j - i - 1);
    let at_least = |i: usize, j: usize| pairs.len() + less(i, j);
    // For every class the planes of the comparisons it must win; each level ANDs neighbours of all
    // classes and puts the result in the place of the first.
    let mut wins: Vec<Vec<usize>> = (0..classes)
        .map(|class| {
            let lower = (0..class).map(|other| less(other, class));
            lower.chain((class + 1..classes).map(|other| at_least(class, other))).collect()
        })
        .collect();
    while wins[0].len() > 1 {
        let neighbours: Vec<(usize, usize)> = wins
            .iter()
            .flat_map(|planes| planes.chunks_exact(2).map(|neighbours| (neighbours[0], neighbours[1])))
            .collect();
        let products = and_planes(party, &planes, &neighbours)?;
        for (product, &(first, _)) in neighbours.iter().enumerate() {
            planes.replace_plane(first, &products, product);
        }
        wins.iter_mut().for_each(|planes| *planes = planes.iter().copied().step_by(2).collect());
    }
    Ok(planes.select(wins.into_iter().flatten()))
}

/// AND bits of every server in each level of [`one_hot_argmax`], for one row.
pub(crate) fn tree_planes(classes: usize) -> Vec<usize> {
    let mut levels = Vec::new();
    let mut count = classes - 1;
    while count > 1 {
        levels.push(classes * (count / 2));
        count = count.div_ceil(2);
    }
    levels
}

/// Number of comparisons for one row.
pub(crate) fn comparisons(classes: usize) -> usize {
    classes * (classes - 1) / 2
}
