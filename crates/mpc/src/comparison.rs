//! The sign of a shared number, by the dealer's look-up over blocks of four bits.
//!
//! # Protocol
//! Only a window of k bits is needed when |x| < 2^(k-1): components are reduced modulo 2^k. The
//! dealer h knows u = x_h + x_{h+1}, both evaluators know v = x_{h+2}, and the sign of x is the
//! top bit of u + v modulo 2^k: the exclusive or of the two top bits and of the carry into them.
//!
//! The k - 1 lower bits are cut into blocks of four. A block generates a carry when
//! u_block + v_block >= 16 and passes one on when the sum is 15. With thresholds
//! t_j = [u_block >= j], that is t_{16-v} and t_{15-v} + t_{16-v}: look-ups at v in a table that the
//! dealer knows. t_0 = 1 and t_16 = 0 need not be sent.
//! 1. The dealer sends t_1 .. t_15 of every block to the first evaluator, masked by a stream that
//!    the second evaluator knows. In the topmost block, thresholds carry the exclusive or with u's
//!    top bit.
//! 2. The evaluators look up the masked table and the masks at v, which gives them an additive
//!    sharing of each block's (generate, propagate); the first evaluator adds v's top bit to the
//!    topmost generate. They exchange their parts under masks that the dealer knows: a replicated
//!    sharing.
//! 3. Up to six blocks are joined at once, by [polynomials](crate::boolean) that the same server
//!    deals: the carry out of four is G_3 + P_3 G_2 + P_3 P_2 G_1 + P_3 P_2 P_1 G_0. More blocks are
//!    joined in groups of four first; a group passes a carry on when all its blocks do. The lowest
//!    block's propagate is never needed.
//!
//! # Cost, k = 32
//! 169 bits from the dealer to the first evaluator, 19 bits between the evaluators in each direction;
//! four rounds, three for k up to 25, of which the first, the dealer's, can coincide with the
//! [rescaling](crate::linear::rescale) before it, when the same server deals both. In all 207 bits.
//! A bitwise carry tree takes 259 bits and seven rounds; joining blocks two by two with ANDs of
//! replicated shares 176 bits and five rounds, in which the dealer waits, so that it cannot deal the
//! [selection](crate::selection) after it in the same round: a ReLU takes six rounds then, four here.
//!
//! # Security
//! Semi-honest, one corruption, perfect: the first evaluator sees masked tables, each evaluator the
//! other's masked look-up, all uniform. No failure: the sign of the number modulo 2^k is exact.
//!
//! # Source
//! The split of x into a part that one server knows and one that two know is that of ABY3 (Mohassel
//! and Rindal, CCS 2018, section 5.3). Two servers that know the index of a masked table need no
//! oblivious transfer, which makes one-time truth tables (Ishai et al., TCC 2013) cheap here.

use std::sync::LazyLock;

use concilium_ring::Element;

use crate::bits::{LANES, Lanes, load, slice, xor_into};
use crate::boolean::{self, Polynomial};
use crate::channel::{Channel, Protocol};
use crate::dealt::{self, Planes};
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::{BitShares, Shares, words_of};
use crate::vectorised::vectorised;

/// Bits that one table covers.
const BLOCK: usize = 4;
/// Most blocks of which all are joined at once: for one more the dealer's coefficients would double.
const MOST_JOINED: usize = 6;
/// Most blocks of a group, where there are more: few coefficients, and groups that are joined at once.
const GROUP: usize = 4;

/// The narrowest and the widest window that [`sign`] takes.
pub const WINDOW_BITS: std::ops::RangeInclusive<u32> = 2..=64;

/// How a window of k bits is cut.
#[derive(Clone)]
pub(crate) struct Layout {
    /// Widths of the blocks of the k - 1 lower bits, lowest first; the last is the topmost block.
    widths: Vec<usize>,
}

impl Layout {
    pub(crate) fn new(window: u32) -> Self {
        let lower = window as usize - 1;
        let mut widths = vec![BLOCK; lower / BLOCK];
        if !lower.is_multiple_of(BLOCK) {
            widths.push(lower % BLOCK);
        }
        Layout { widths }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.widths.len()
    }

    /// Planes that the dealer sends for block `block`: all thresholds but 0 and 2^w, and for the
    /// topmost block also that of 2^w, which is u's top bit there.
    fn table_planes(&self, block: usize) -> usize {
        (1 << self.widths[block]) - usize::from(block + 1 != self.blocks())
    }

    /// Planes of all tables.
    pub(crate) fn all_table_planes(&self) -> usize {
        (0..self.blocks()).map(|block| self.table_planes(block)).sum()
    }

    /// Planes of all look-ups: generate of every block, then propagate of all but the lowest.
    pub(crate) fn exchange_planes(&self) -> usize {
        2 * self.blocks() - 1
    }
}

/// Boolean shares of `[x < 0]` for every element of `x`, where the numbers are read modulo
/// 2^`window` as signed. One plane; elements in row-major order. See the module for the protocol.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If the window lies outside [`WINDOW_BITS`] or exceeds the ring.
pub fn sign<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    x: &Shares<E>,
    window: u32,
) -> Result<BitShares, MpcError> {
    assert!(WINDOW_BITS.contains(&window) && window <= E::BITS, "the window does not fit the ring");
    let layout = Layout::new(window);
    let leaves = block_carries(party, dealer, x, window, &layout)?;
    join_blocks(party, dealer, leaves, layout.blocks())
}

/// Steps 1 and 2: generate of every block, lowest first, then propagate of all but the lowest.
fn block_carries<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    x: &Shares<E>,
    window: u32,
    layout: &Layout,
) -> Result<BitShares, MpcError> {
    let window = window as usize;
    dealt::bits(
        party,
        dealer,
        [Protocol::ComparisonTables, Protocol::ComparisonExchange],
        &Planes { dealt: layout.all_table_planes(), results: layout.exchange_planes(), bits: x.len() },
        [x.own_slice(), x.next_slice()],
        |message, x| add_tables(message, x, window, layout),
        |found, tables, v, first| {
            add_looked_up(found, tables, v, window, layout, if first { u64::MAX } else { 0 });
        },
    )
}

#[inline(always)]
fn xor(left: Lanes, right: Lanes) -> Lanes {
    let mut result = left;
    result.iter_mut().zip(right).for_each(|(left, right)| *left ^= right);
    result
}

/// For each bit of `choice` that of `first` or, where it is set, that of `second`.
#[inline(always)]
fn choose(choice: Lanes, first: Lanes, second: Lanes) -> Lanes {
    let mut result = first;
    for lane in 0..LANES {
        result[lane] ^= (first[lane] ^ second[lane]) & choice[lane];
    }
    result
}

vectorised! {
    /// Exclusive-ors the dealer's tables into `message`: for every block the planes of t_1 ..
    /// t_(2^w - 1), and for the topmost block u's top bit followed by t_j exclusive-or that bit.
    fn add_tables<E: Element>(message: &mut [u64], x: [&[E]; 2], window: usize, layout: &Layout) {
        let (count, words) = (x[0].len(), words_of(x[0].len()));
        let mut u = [[0; LANES]; 64];
        for word in (0..words).step_by(LANES) {
            let numbers = 64 * word..count.min(64 * (word + LANES));
            slice(&x[0][numbers.clone()], &x[1][numbers], window, &mut u);
            let here = LANES.min(words - word);
            let (mut low, mut start) = (0, 0);
            for (block, &width) in layout.widths.iter().enumerate() {
                let topmost = block + 1 == layout.blocks();
                let mut thresholds = [[0; LANES]; 1 << BLOCK];
                let mut known = 1;
                for plane in &u[low..low + width] {
                    // [u >= j] for one more, higher bit: it alone decides at j = 2^bit, it must be set
                    // above, and it suffices below.
                    for j in 1..known {
                        for lane in 0..LANES {
                            thresholds[known + j][lane] = plane[lane] & thresholds[j][lane];
                            thresholds[j][lane] |= plane[lane];
                        }
                    }
                    thresholds[known] = *plane;
                    known *= 2;
                }
                // Place 0 of the topmost block stands for t_(2^w) = 0 and carries the bit alone.
                let top = if topmost { u[low + width] } else { [0; LANES] };
                let first = usize::from(!topmost);
                for (place, &threshold) in thresholds[first..1 << width].iter().enumerate() {
                    let at = (start + place) * words + word;
                    xor_into(&mut message[at..at + here], &xor(threshold, top));
                }
                low += width;
                start += layout.table_planes(block);
            }
        }
    }

    /// Exclusive-ors one evaluator's look-ups at v into `found`: generate of every block, then propagate of
    /// all but the lowest. `one` is how this evaluator holds the constant 1: all ones for exactly one of the
    /// two, which also adds v's top bit to the topmost block's generate.
    fn add_looked_up<E: Element>(
        found: &mut [u64],
        table: &[u64],
        numbers: &[E],
        window: usize,
        layout: &Layout,
        one: u64,
    ) {
        const HALF: usize = 1 << (BLOCK - 1);
        let (count, words, blocks) = (numbers.len(), words_of(numbers.len()), layout.blocks());
        let mut v = [[0; LANES]; 64];
        for word in (0..words).step_by(LANES) {
            slice(&numbers[64 * word..count.min(64 * (word + LANES))], &[], window, &mut v);
            let here = LANES.min(words - word);
            let (mut low, mut start) = (0, 0);
            for (block, &width) in layout.widths.iter().enumerate() {
                let topmost = block + 1 == blocks;
                let size = 1 << width;
                let sent = |place: usize| {
                    let at = (start + place) * words + word;
                    load(&table[at..at + here])
                };
                // t_0 to t_(2^w), those with even and those with odd numbers.
                let (mut even, mut odd) = ([[0; LANES]; HALF + 1], [[0; LANES]; HALF]);
                even[0] = [one; LANES];
                if topmost {
                    let top = sent(0);
                    even[0] = xor(even[0], top);
                    even[size / 2] = top;
                }
                for j in 1..size {
                    let threshold = sent(j - usize::from(!topmost));
                    if j % 2 == 0 { even[j / 2] = threshold } else { odd[j / 2] = threshold }
                }
                // The carry is generated if t_(2^w - v), and passed on if t_(2^w - 1 - v) alone. With m the
                // complement of v / 2, these are odd[m] and even[m] for odd v, even[m + 1] and odd[m] for
                // even v.
                let (mut below, mut between, mut above) =
                    ([[0; LANES]; HALF], [[0; LANES]; HALF], [[0; LANES]; HALF]);
                let mut remaining = size / 2;
                for entry in 0..remaining {
                    let m = remaining - 1 - entry;
                    (below[entry], between[entry], above[entry]) = (even[m], odd[m], even[m + 1]);
                }
                for bit in (1..width).rev() {
                    remaining /= 2;
                    for tree in [&mut below, &mut between, &mut above] {
                        for entry in 0..remaining {
                            tree[entry] = choose(v[low + bit], tree[entry], tree[entry + remaining]);
                        }
                    }
                }
                let mut generate = choose(v[low], above[0], between[0]);
                let reached = choose(v[low], between[0], below[0]);
                let propagate = xor(generate, reached);
                if topmost {
                    for lane in 0..LANES {
                        generate[lane] ^= v[low + width][lane] & one;
                    }
                }
                let at = block * words + word;
                xor_into(&mut found[at..at + here], &generate);
                if block > 0 {
                    let at = (blocks + block - 1) * words + word;
                    xor_into(&mut found[at..at + here], &propagate);
                }
                low += width;
                start += layout.table_planes(block);
            }
        }
    }
}

/// Step 3: the carry out of all blocks, which for the topmost block is the sign.
fn join_blocks<C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    mut leaves: BitShares,
    blocks: usize,
) -> Result<BitShares, MpcError> {
    for polynomials in JOINS[blocks].iter() {
        leaves = boolean::evaluate(party, dealer, &leaves, polynomials)?;
    }
    Ok(leaves)
}

/// For each number of blocks that a window can have, what [`joins`] gives: made once, for it takes longer than a
/// small batch.
static JOINS: LazyLock<Vec<Vec<Vec<Polynomial>>>> =
    LazyLock::new(|| (0..=(*WINDOW_BITS.end() as usize - 1).div_ceil(BLOCK)).map(joins).collect());

/// The polynomials that join `blocks` blocks, level by level. Planes are the generates of all blocks, lowest
/// first, then the propagates of all but the lowest, before and after each level.
pub(crate) fn joins(blocks: usize) -> Vec<Vec<Polynomial>> {
    let mut levels = Vec::new();
    let mut count = blocks;
    while count > 1 {
        let generate = |block: usize| block;
        let propagate = |block: usize| count + block - 1;
        let groups = if count <= MOST_JOINED { 1 } else { count.div_ceil(GROUP) };
        let ranges: Vec<_> =
            (0..groups).map(|group| group * count / groups..(group + 1) * count / groups).collect();
        // A group's carry is the generate of one block that all blocks above it pass on.
        let carries = ranges.iter().map(|blocks| {
            let passed_on = |from: usize| (from + 1..blocks.end).map(propagate);
            let carry = |from: usize| std::iter::once(generate(from)).chain(passed_on(from)).collect();
            Polynomial::sum(blocks.clone().map(carry).collect())
        });
        let passes =
            ranges[1..].iter().map(|blocks| Polynomial::product(blocks.clone().map(propagate).collect()));
        levels.push(carries.chain(passes).collect());
        count = groups;
    }
    levels
}
