//! From numbers to one-hot votes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use concilium_ring::Element;

use crate::boolean::{self, Polynomial};
use crate::channel::Channel;
use crate::comparison;
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::{BitShares, Shares};

/// Most bits of one AND: for one more the dealer's coefficients would double.
const MOST_JOINED: usize = 4;

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
/// One batch of n classes (classes - 1) / 2 comparisons, and one exchange for each level of a tree of ANDs
/// of up to four bits, all dealt by the same server: ceil(log4(classes - 1)) rounds more.
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
    let tree = tree(classes);
    for level in &tree.levels {
        let products = boolean::evaluate(party, dealer, &planes, &level.ands)?;
        for (product, &place) in level.places.iter().enumerate() {
            planes.replace_plane(place, &products, product);
        }
    }
    Ok(planes.select(tree.winners.iter().copied()))
}

/// For every class the planes of the comparisons that it must win: `[x_i < x_j]` of every pair i < j, then
/// their complements.
fn wins(classes: usize) -> Vec<Vec<usize>> {
    let less = |i: usize, j: usize| i * classes - i * (i + 1) / 2 + (j - i - 1);
    let at_least = |i: usize, j: usize| comparisons(classes) + less(i, j);
    (0..classes)
        .map(|class| {
            let lower = (0..class).map(|other| less(other, class));
            lower.chain((class + 1..classes).map(|other| at_least(class, other))).collect()
        })
        .collect()
}

/// The tree of ANDs, for all classes.
pub(crate) struct Tree {
    pub(crate) levels: Vec<Level>,
    /// For every class the plane that holds, after all levels, whether it wins.
    winners: Vec<usize>,
}

/// One level of the tree of ANDs, for all classes.
pub(crate) struct Level {
    pub(crate) ands: Vec<Polynomial>,
    /// The plane whose place each AND takes.
    places: Vec<usize>,
}

/// The tree for this number of classes: made once, for it takes longer than a few rows.
pub(crate) fn tree(classes: usize) -> Arc<Tree> {
    static TREES: Mutex<BTreeMap<usize, Arc<Tree>>> = Mutex::new(BTreeMap::new());
    let mut trees = TREES.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(trees.entry(classes).or_insert_with(|| Arc::new(grow(classes))))
}

/// As few levels as groups of four allow, and the smallest groups that take no more.
fn grow(classes: usize) -> Tree {
    let depth = |size: usize| (0..).find(|&level| size.pow(level) >= classes - 1).expect("sizes grow");
    let size = (2..=MOST_JOINED).find(|&size| depth(size) == depth(MOST_JOINED)).unwrap_or(MOST_JOINED);
    let mut wins = wins(classes);
    let mut levels = Vec::new();
    while wins[0].len() > 1 {
        let groups = wins.iter().flat_map(|planes| planes.chunks(size)).filter(|group| group.len() > 1);
        let (places, ands) = groups.map(|group| (group[0], Polynomial::product(group.to_vec()))).unzip();
        levels.push(Level { ands, places });
        wins.iter_mut().for_each(|planes| *planes = planes.iter().copied().step_by(size).collect());
    }
    Tree { levels, winners: wins.concat() }
}

/// Number of comparisons for one row.
pub(crate) fn comparisons(classes: usize) -> usize {
    classes * (classes - 1) / 2
}
