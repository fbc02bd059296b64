//! From numbers to one-hot votes.

use concilium_ring::Element;

use crate::bits;
use crate::boolean::and;
use crate::channel::Channel;
use crate::comparison;
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::{BitShares, Shares, words_of};

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
    let less = one_plane_for_each(less, pairs.len(), rows);
    let plane_of = |i: usize, j: usize| i * classes - i * (i + 1) / 2 + (j - i - 1);
    let mut at_least = less.select(0..pairs.len());
    (0..pairs.len()).for_each(|plane| at_least.flip_plane(party.index(), plane));
    // For every class the comparisons it must win; each level ANDs neighbours of all classes.
    let mut wins: Vec<BitShares> = (0..classes)
        .map(|class| {
            let mut wins = less.select((0..class).map(|other| plane_of(other, class)));
            wins.append(&at_least.select((class + 1..classes).map(|other| plane_of(class, other))));
            wins
        })
        .collect();
    while wins[0].planes() > 1 {
        let (count, half) = (wins[0].planes(), wins[0].planes() / 2);
        let gather = |first: usize| {
            let mut gathered = wins[0].select((0..half).map(|q| 2 * q + first));
            wins[1..].iter().for_each(|w| gathered.append(&w.select((0..half).map(|q| 2 * q + first))));
            gathered
        };
        let products = and(party, &gather(0), &gather(1))?;
        wins = wins
            .iter()
            .enumerate()
            .map(|(class, wins)| {
                let mut joined = products.select(class * half..(class + 1) * half);
                joined.append(&wins.select(2 * half..count));
                joined
            })
            .collect();
    }
    let mut winners = wins[0].select([0]);
    wins[1..].iter().for_each(|class| winners.append(class));
    Ok(winners)
}

/// Reads one plane of `planes * bits` bits as planes of their own.
fn one_plane_for_each(shares: BitShares, planes: usize, bits: usize) -> BitShares {
    let spread = |component: &[u64]| {
        let mut spread = vec![0; planes * words_of(bits)];
        for (plane, target) in spread.chunks_exact_mut(words_of(bits).max(1)).enumerate() {
            bits::copy_bits(component, plane * bits, target, 0, bits);
        }
        spread
    };
    BitShares::new(planes, bits, spread(shares.own()), spread(shares.next()))
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
