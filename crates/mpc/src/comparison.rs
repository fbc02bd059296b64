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
//!    sharing of each block's (generate, propagate), and exchange them under masks that the dealer
//!    knows: a replicated sharing.
//! 3. A tree joins neighbouring blocks: generate = G_high + P_high G_low, propagate =
//!    P_high P_low, one AND round a level. The lowest block's propagate is never needed.
//!
//! # Cost, k = 32
//! 113 bits from the dealer to the first evaluator, 15 bits between the evaluators in each
//! direction, 11 AND bits from every server; 2 + 3 rounds, of which the first can coincide with
//! the [rescaling](crate::linear::rescale) before it, when the same server deals both.
//! In all 176 bits and five rounds. A bitwise carry tree takes 259 bits and seven rounds; blocks of
//! three 162 bits and six rounds, blocks of five 241 bits and five rounds.
//!
//! # Security
//! Semi-honest, one corruption, perfect: the first evaluator sees masked tables, each evaluator the
//! other's masked look-up, all uniform. No failure: the sign of the number modulo 2^k is exact.
//!
//! # Source
//! The split of x into a part that one server knows and one that two know is that of ABY3 (Mohassel
//! and Rindal, CCS 2018, section 5.3). Two servers that know the index of a masked table need no
//! oblivious transfer, which makes one-time truth tables (Ishai et al., TCC 2013) cheap here.

use concilium_ring::Element;

use crate::bits;
use crate::boolean::and;
use crate::channel::{Channel, Neighbour, Protocol};
use crate::party::{MpcError, Party, PartyIndex, Seat};
use crate::shares::{BitShares, Shares, words_of};

/// Bits that one table covers.
const BLOCK: usize = 4;
pub(crate) const TABLE_MESSAGES: [(usize, usize); 1] = [(0, 1)];
pub(crate) const EXCHANGE_MESSAGES: [(usize, usize); 2] = [(1, 2), (2, 1)];

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
    join_blocks(party, leaves, layout.blocks())
}

/// Steps 1 and 2: generate of every block, lowest first, then propagate of all but the lowest.
fn block_carries<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    x: &Shares<E>,
    window: u32,
    layout: &Layout,
) -> Result<BitShares, MpcError> {
    let (count, words) = (x.len(), words_of(x.len()));
    let planes = window as usize;
    let seat = party.seat(dealer);
    let tables = party.begin(Protocol::ComparisonTables, dealer, &TABLE_MESSAGES);
    let table_planes = layout.all_table_planes();
    let exchange = party.begin(Protocol::ComparisonExchange, dealer, &EXCHANGE_MESSAGES);
    let looked_up = layout.exchange_planes();
    let shared = |elements: &[E]| bits::slice(elements.iter().map(|v| v.to_unsigned()), planes);
    match seat {
        Seat::Dealer => {
            let sums = x.own_slice().iter().zip(x.next_slice());
            let u = bits::slice(sums.map(|(&a, &b)| (a + b).to_unsigned()), planes);
            let mut thresholds = threshold_planes(&u, words, layout);
            party.prss.own.mask_words(tables, 0, &mut thresholds);
            party.send(Neighbour::Next, tables, &bits::pack(thresholds, table_planes, count))?;
            let own = party.prss.own.words(exchange, 0, looked_up * words);
            let next = party.prss.next.words(exchange, 0, looked_up * words);
            Ok(BitShares::new(looked_up, count, own, next))
        }
        Seat::FirstEvaluator => {
            let v = shared(x.next_slice());
            let packed = bits::packed_words(table_planes, count);
            let masked =
                bits::unpack(party.receive(Neighbour::Previous, tables, packed)?, table_planes, count);
            let mut mine = look_up(&masked, &v, words, layout, u64::MAX);
            let own = party.prss.own.words(exchange, 0, looked_up * words);
            mine.iter_mut().zip(&own).for_each(|(word, mask)| *word ^= mask);
            let next = exchange_words(party, Neighbour::Next, exchange, mine, looked_up, count)?;
            let mut leaves = BitShares::new(looked_up, count, own, next);
            fold_top_bit(leaves.components_mut().1, &v, words, window, layout);
            Ok(leaves)
        }
        Seat::SecondEvaluator => {
            let v = shared(x.own_slice());
            let masks = party.prss.next.words(tables, 0, table_planes * words);
            let mut mine = look_up(&masks, &v, words, layout, 0);
            let next = party.prss.next.words(exchange, 0, looked_up * words);
            mine.iter_mut().zip(&next).for_each(|(word, mask)| *word ^= mask);
            let own = exchange_words(party, Neighbour::Previous, exchange, mine, looked_up, count)?;
            let mut leaves = BitShares::new(looked_up, count, own, next);
            fold_top_bit(leaves.components_mut().0, &v, words, window, layout);
            Ok(leaves)
        }
    }
}

/// Sends `mine` to the other evaluator and returns the exclusive or of both messages, which is
/// component h + 2 of the result.
fn exchange_words<C: Channel>(
    party: &mut Party<C>,
    other: Neighbour,
    step: crate::channel::Step,
    mut mine: Vec<u64>,
    planes: usize,
    count: usize,
) -> Result<Vec<u64>, MpcError> {
    let packed = bits::pack(mine.clone(), planes, count);
    party.send(other, step, &packed)?;
    let theirs = bits::unpack(party.receive(other, step, packed.len())?, planes, count);
    mine.iter_mut().zip(theirs).for_each(|(word, their)| *word ^= their);
    Ok(mine)
}

/// Exclusive-ors v's top bit, which both evaluators know, into the topmost block's generate.
fn fold_top_bit(component: &mut [u64], v: &[u64], words: usize, window: u32, layout: &Layout) {
    let generate = (layout.blocks() - 1) * words;
    let top = (window as usize - 1) * words;
    for word in 0..words {
        component[generate + word] ^= v[top + word];
    }
}

/// The dealer's tables: for every block the planes of t_1 .. t_(2^w - 1), and for the topmost
/// block u's top bit followed by t_j exclusive-or that bit.
fn threshold_planes(u: &[u64], words: usize, layout: &Layout) -> Vec<u64> {
    let mut planes = Vec::with_capacity(layout.all_table_planes() * words);
    let mut low = 0;
    for (block, &width) in layout.widths.iter().enumerate() {
        let topmost = block + 1 == layout.blocks();
        let size = 1 << width;
        let start = planes.len();
        planes.resize(start + layout.table_planes(block) * words, 0);
        for word in 0..words {
            let mut thresholds = [0; 1 << BLOCK];
            let mut known = 1;
            for bit in 0..width {
                let plane = u[(low + bit) * words + word];
                // [u >= j] for one more, higher bit: it alone decides at j = 2^bit, it must be set
                // above, and it suffices below.
                for j in 1..known {
                    thresholds[known + j] = plane & thresholds[j];
                    thresholds[j] |= plane;
                }
                thresholds[known] = plane;
                known *= 2;
            }
            let top = if topmost { u[(low + width) * words + word] } else { 0 };
            let first = usize::from(!topmost);
            for (place, threshold) in thresholds.iter().enumerate().take(size).skip(first) {
                // Place 0 of the topmost block stands for t_(2^w) = 0 and carries the bit alone.
                planes[start + (place - first) * words + word] = threshold ^ top;
            }
        }
        low += width;
    }
    planes
}

/// One evaluator's look-ups at v: generate of every block, then propagate of all but the lowest.
/// `one` is how this evaluator holds the constant 1: all ones for exactly one of the two.
fn look_up(table: &[u64], v: &[u64], words: usize, layout: &Layout, one: u64) -> Vec<u64> {
    let blocks = layout.blocks();
    let mut found = vec![0; layout.exchange_planes() * words];
    let (mut low, mut start) = (0, 0);
    for (block, &width) in layout.widths.iter().enumerate() {
        let topmost = block + 1 == blocks;
        let size = 1usize << width;
        for word in 0..words {
            let sent = |place: usize| table[start + place * words + word];
            // thresholds[j] for j in 0..=size.
            let mut thresholds = [0; (1 << BLOCK) + 1];
            if topmost {
                thresholds[0] = one ^ sent(0);
                thresholds[size] = sent(0);
                (1..size).for_each(|j| thresholds[j] = sent(j));
            } else {
                thresholds[0] = one;
                (1..size).for_each(|j| thresholds[j] = sent(j - 1));
            }
            // Entry v of `generates` is t_(size - v), of `passes` t_(size - 1 - v).
            let mut generates = [0; 1 << BLOCK];
            let mut passes = [0; 1 << BLOCK];
            for entry in 0..size {
                generates[entry] = thresholds[size - entry];
                passes[entry] = thresholds[size - 1 - entry];
            }
            let mut remaining = size;
            for bit in (0..width).rev() {
                let choice = v[(low + bit) * words + word];
                remaining /= 2;
                for entry in 0..remaining {
                    let (g, p) = (generates[entry], passes[entry]);
                    generates[entry] = g ^ ((g ^ generates[entry + remaining]) & choice);
                    passes[entry] = p ^ ((p ^ passes[entry + remaining]) & choice);
                }
            }
            found[block * words + word] = generates[0];
            if block > 0 {
                found[(blocks + block - 1) * words + word] = generates[0] ^ passes[0];
            }
        }
        low += width;
        start += layout.table_planes(block) * words;
    }
    found
}

/// Step 3: the carry out of all blocks, which for the topmost block is the sign.
fn join_blocks<C: Channel>(
    party: &mut Party<C>,
    leaves: BitShares,
    blocks: usize,
) -> Result<BitShares, MpcError> {
    let mut generate = leaves.select(0..blocks);
    // Plane b holds the propagate of block b + 1.
    let mut propagate = leaves.select(blocks..2 * blocks - 1);
    while generate.planes() > 1 {
        let count = generate.planes();
        let pairs = count / 2;
        // Pair q joins low block 2q and high block 2q + 1, whose propagate is plane 2q.
        let mut left = propagate.select((0..pairs).map(|q| 2 * q));
        left.append(&propagate.select((1..pairs).map(|q| 2 * q)));
        let mut right = generate.select((0..pairs).map(|q| 2 * q));
        right.append(&propagate.select((1..pairs).map(|q| 2 * q - 1)));
        let products = and(party, &left, &right)?;
        let mut joined = generate.select((0..pairs).map(|q| 2 * q + 1));
        (0..pairs).for_each(|q| joined.xor_plane(q, &products, q));
        let mut passes = products.select(pairs..products.planes());
        if count % 2 == 1 {
            joined.append(&generate.select([count - 1]));
            passes.append(&propagate.select([count - 2]));
        }
        generate = joined;
        propagate = passes;
    }
    Ok(generate)
}

/// AND rounds of [`join_blocks`] and the AND bits of every server for one comparison.
pub(crate) fn tree_cost(blocks: usize) -> (u32, Vec<usize>) {
    let mut planes = Vec::new();
    let mut count = blocks;
    while count > 1 {
        planes.push(2 * (count / 2) - 1);
        count = count.div_ceil(2);
    }
    (planes.len() as u32, planes)
}
