//! Products with secret matrices, and the rescaling that ends them, in one round.

use concilium_ring::{Element, PackedMatrix};
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::channel::{Channel, Neighbour, Protocol};
use crate::party::{MpcError, Party, PartyIndex, Seat};
use crate::prss::PIECE;
use crate::shares::{AdditiveShare, Shares};

/// The messages of [`rescale`], as distances from the dealer.
pub(crate) const RESCALE_MESSAGES: [(usize, usize); 3] = [(0, 1), (1, 2), (2, 1)];

/// One server's share of a secret matrix, prepared for products with secret inputs.
///
/// Server i keeps `W_i + W_{i+1}` and `W_i`: its term of a product `x W` is
/// `x_i (W_i + W_{i+1}) + x_{i+1} W_i`, two products without communication. Memory: two elements a
/// weight, 16 bytes in Z_2^64 and 8 in Z_2^32.
pub struct SharedMatrix<E: Element> {
    sum: PackedMatrix<E>,
    own: PackedMatrix<E>,
}

impl<E: Element> SharedMatrix<E> {
    /// Prepares components i (`own`) and i + 1 (`next`), both `[rows, columns]`.
    ///
    /// # Panics
    /// If their shapes differ.
    pub fn new(own: ArrayView2<'_, E>, next: ArrayView2<'_, E>) -> Self {
        assert_eq!(own.dim(), next.dim(), "the two components have different shapes");
        let mut sum = own.to_owned();
        sum.zip_mut_with(&next, |a, &b| *a += b);
        let packed = PackedMatrix::pack(sum.view());
        crate::shares::wipe_matrix(&mut sum);
        SharedMatrix { sum: packed, own: PackedMatrix::pack(own) }
    }

    /// The inner dimension.
    pub fn rows(&self) -> usize {
        self.own.rows()
    }

    /// The number of columns of a product.
    pub fn columns(&self) -> usize {
        self.own.columns()
    }

    /// Bytes of memory that the prepared share takes.
    pub fn memory_bytes(&self) -> usize {
        self.sum.memory_bytes() + self.own.memory_bytes()
    }

    /// Adds this server's term of `x W` to `out`, where `own` and `next` are its components of x,
    /// `[m, rows]`, and `out` is `[m, columns]`. No communication.
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    pub fn multiply_add(
        &self,
        own: ArrayView2<'_, E>,
        next: ArrayView2<'_, E>,
        mut out: ArrayViewMut2<'_, E>,
    ) {
        self.sum.multiply_add(own, out.view_mut());
        self.own.multiply_add(next, out);
    }
}

/// Divides a product by 2^f and reshares it, in one round.
///
/// Before: server i holds a term z_i; z = z_0 + z_1 + z_2 is the value at double scale, and
/// `|z| < 2^bound_bits[c]` for every element of column c, as the range analysis found. After: a
/// replicated sharing of z / 2^f, modulo 2^(k-f) always and modulo 2^k with overwhelming probability
/// where the bound leaves headroom (see *Failure*), rounded up with a probability equal to the fractional part and
/// down otherwise: an unbiased stochastic rounding, at most one unit in the last place from the
/// exact quotient.
///
/// # Protocol
/// h is the dealer, a = h + 1 and b = h + 2 the evaluators. Let F_a, F_h be streams of K_a (known
/// to h and a) and K_h (known to h and b), and 2^l - 1 the column's public offset, which makes the
/// value z' = z + 2^l - 1 non-negative.
/// - a sends `z_a + F_a + 2^l - 1` to b, b sends `z_b + F_h` to a. Both add them up to
///   c = z' - r, where r = z_h - F_a - F_h is known to the dealer alone.
/// - The dealer sends `(r >> f) - F'_h` to a. This is component a, and F'_h is component h.
/// - Component b is `(c >> f) - 2^(k-f) - 2^(l-f) + 1`, known to a and b.
///
/// z' = c + r - 2^k, unless c + r does not reach 2^k; then the result is off by 2^(k-f).
/// `(c >> f) + (r >> f)` lacks the carry out of the low bits, for which the added one stands: the
/// result is too high by one exactly when there is no carry, that is with probability
/// (p + 1) / 2^f for p the low f bits of z'. The offset's missing one turns this into p / 2^f for p
/// the low bits of z: no bias at all, and multiples of 2^f come out exact.
///
/// # Cost
/// One round. Three elements for each value, one from each server; the dealer receives nothing and
/// knows its components of the result at once, so it can deal the comparison that follows in the
/// same round.
///
/// # Failure
/// *Modulo 2^(k-f) there is none*, for every |z| < 2^l with l <= k - 2 and every r: what a wrap leaves
/// wrong is a multiple of 2^(k-f). A result of which only that is used needs no headroom: a
/// [sign](crate::comparison::sign) in a window of at most k - f bits, and the
/// [selection that widens](crate::selection::widen_unless), which brings the number back to modulo 2^k.
/// In Z_2^32 every rescaling is used so, and there every bound up to 2^30 is exact.
///
/// Modulo 2^k a result is wrong with probability at most 2^(l+1-k) for each value (r must exceed z'). In
/// Z_2^64, with the 24 bits of headroom that import demands, this is below 2^-24; it spoils one neuron of
/// one owner, which changes at most that owner's vote.
///
/// # Security
/// Semi-honest, one corruption, perfect simulation of messages: each is masked by a stream that
/// its receiver does not know (F_a and the zero-sum structure hide z_a from b; F_h hides z_b from
/// a; F'_h hides r from a). The functionality realised is *probabilistic* truncation: the dealer
/// learns r and the evaluators c, both uniform by themselves, and the rounding of the result is
/// a function of them. Whoever sees the opened result and r could narrow down the low f bits of z;
/// here results are never opened, only votes after noise.
///
/// # Source
/// The masked opening of Catrina and de Hoogh (SCN 2010), in the three-party form without
/// preprocessing of Dalskov, Escudero, Keller (USENIX Security 2021, section 5). Drawing r through
/// its masks, so that the dealer's share of z is never sent, halves the elements from six to three.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If there is not one bound for each column, a bound does not fit the ring, or `f` is zero.
pub fn rescale<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    terms: AdditiveShare<E>,
    bound_bits: &[u32],
    fractional_bits: u32,
) -> Result<Shares<E>, MpcError> {
    let shape = terms.dim();
    let columns = shape.1;
    let f = fractional_bits;
    assert_eq!(bound_bits.len(), columns, "one bound is needed for each column");
    assert!(f > 0 && f < E::BITS, "the scale must lie within the ring");
    assert!(bound_bits.iter().all(|&l| l >= f && l + 1 < E::BITS), "a bound lies outside the ring");
    let step = party.begin(Protocol::LinearTruncation, dealer, &RESCALE_MESSAGES);
    let mine = terms.0.as_slice().expect("additive shares are kept in standard layout");
    let count = mine.len();
    let (own, next) = match party.seat(dealer) {
        Seat::Dealer => {
            let own = party.prss.own.elements::<E>(step, 1, count);
            let mut next = party.prss.next.elements::<E>(step, 0, count);
            let mut second = party.prss.own.stream(step, 0);
            let mut drawn = [E::ZERO; PIECE];
            for (place, next) in next.chunks_mut(PIECE).enumerate() {
                let range = place * PIECE..place * PIECE + next.len();
                let second_masks = &mut drawn[..next.len()];
                second.fill(second_masks);
                for (((next, &term), &second), &own) in
                    next.iter_mut().zip(&mine[range.clone()]).zip(&*second_masks).zip(&own[range])
                {
                    let r = term - *next - second;
                    *next = r.shift_right(f) - own;
                }
            }
            party.send(Neighbour::Next, step, &next)?;
            (own, next)
        }
        Seat::FirstEvaluator => {
            let mut masked = party.prss.own.elements::<E>(step, 0, count);
            let offsets: Vec<E> = bound_bits.iter().map(|&l| E::power_of_two(l) - E::ONE).collect();
            let lines = masked.chunks_exact_mut(columns.max(1)).zip(mine.chunks_exact(columns.max(1)));
            for (line, terms) in lines {
                for ((value, &offset), &term) in line.iter_mut().zip(&offsets).zip(terms) {
                    *value += term + offset;
                }
            }
            let masked = party.send_and_keep(Neighbour::Next, step, masked)?;
            let own = party.receive::<E>(Neighbour::Previous, step, count)?;
            let other = party.receive::<E>(Neighbour::Next, step, count)?;
            (own, opened_quotient(other, &masked, bound_bits, f))
        }
        Seat::SecondEvaluator => {
            let mut masked = party.prss.next.elements::<E>(step, 0, count);
            masked.iter_mut().zip(mine).for_each(|(value, &term)| *value += term);
            let masked = party.send_and_keep(Neighbour::Previous, step, masked)?;
            let next = party.prss.next.elements::<E>(step, 1, count);
            let other = party.receive::<E>(Neighbour::Previous, step, count)?;
            (opened_quotient(other, &masked, bound_bits, f), next)
        }
    };
    Ok(Shares::from_vectors(shape, own, next))
}

/// Component b of the result, from the evaluators' two messages.
fn opened_quotient<E: Element>(mut theirs: Vec<E>, mine: &[E], bound_bits: &[u32], f: u32) -> Vec<E> {
    let corrections: Vec<E> =
        bound_bits.iter().map(|&l| E::ONE - E::power_of_two(E::BITS - f) - E::power_of_two(l - f)).collect();
    let columns = bound_bits.len().max(1);
    for (line, mine) in theirs.chunks_exact_mut(columns).zip(mine.chunks_exact(columns)) {
        for ((value, &mine), &correction) in line.iter_mut().zip(mine).zip(&corrections) {
            *value = (*value + mine).shift_right(f) + correction;
        }
    }
    theirs
}
