//! What the protocols cost: rounds, and payload bytes of every server.
//!
//! The figures are computed from the same layouts that the protocols use; a test runs each
//! protocol and compares its counted traffic with them, and `docs/protocol-costs.md` is the table
//! for the usual sizes.

use crate::bits::packed_words;
use crate::boolean::Polynomial;
use crate::comparison::{self, Layout};
use crate::consensus;
use crate::dealt::{DEALER_MESSAGES, EXCHANGE_MESSAGES};
use crate::votes;
use crate::{probability, product, selection};

/// Rounds and payload bytes sent, by distance from the dealer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// The longest chain of dependent messages, when all servers start together.
    pub rounds: u32,
    /// Bytes that the dealer, the first and the second evaluator send.
    pub bytes: [u64; 3],
}

impl Cost {
    fn add(self, rounds: u32, bytes: [u64; 3]) -> Self {
        let [a, b, c] = self.bytes;
        Cost { rounds: self.rounds + rounds, bytes: [a + bytes[0], b + bytes[1], c + bytes[2]] }
    }
}

/// A [look-up of bits](crate::dealt::bits): `dealt` planes for tables and `results` planes, of `count` bits.
fn dealt_bits(dealt: usize, results: usize, count: usize) -> Cost {
    let [dealt, exchanged] = [dealt, results].map(|planes| 8 * packed_words(planes, count) as u64);
    Cost { rounds: 2, bytes: [dealt, exchanged, exchanged] }
}

/// A [look-up of `count` elements](crate::dealt::elements): `dealt` for the tables of each.
fn dealt_elements(dealt: usize, count: usize, element_bytes: usize) -> Cost {
    let exchanged = (count * element_bytes) as u64;
    Cost { rounds: 2, bytes: [dealt as u64 * exchanged, exchanged, exchanged] }
}

/// [Rescaling](crate::linear::rescale) of `count` elements.
pub fn rescale(count: usize, element_bytes: usize) -> Cost {
    let bytes = (count * element_bytes) as u64;
    Cost { rounds: 1, bytes: [bytes; 3] }
}

/// [Polynomials](crate::boolean::evaluate) of bits, for `count` values.
pub fn polynomials(polynomials: &[Polynomial], count: usize) -> Cost {
    dealt_bits(polynomials.iter().map(Polynomial::dealt_bits).sum(), polynomials.len(), count)
}

/// The [sign](crate::comparison::sign) of `count` numbers in a window of `window` bits.
pub fn sign(count: usize, window: u32) -> Cost {
    let layout = Layout::new(window);
    let leaves = dealt_bits(layout.all_table_planes(), layout.exchange_planes(), count);
    // What the same server deals afterwards leaves in its first round.
    let levels = comparison::joins(layout.blocks());
    levels.iter().fold(leaves, |cost, joins| cost.add(1, polynomials(joins, count).bytes))
}

/// [Selection](crate::selection::select_unless) of `count` elements.
pub fn select(count: usize, element_bytes: usize) -> Cost {
    dealt_elements(selection::ELEMENTS, count, element_bytes)
}

/// [Selection that widens](crate::selection::widen_unless) of `count` elements.
pub fn widen(count: usize, element_bytes: usize) -> Cost {
    dealt_elements(selection::WIDENING_ELEMENTS, count, element_bytes)
}

/// [One-hot argmax](crate::votes::one_hot_argmax) of `rows` rows.
pub fn one_hot_argmax(rows: usize, classes: usize, window: u32) -> Cost {
    let compared = sign(rows * votes::comparisons(classes), window);
    votes::tree(classes)
        .levels
        .iter()
        .fold(compared, |cost, level| cost.add(1, polynomials(&level.ands, rows).bytes))
}

/// [Sum of bits](crate::conversion::sum_bits) of `planes` planes of `bits` bits.
pub fn sum_bits(planes: usize, bits: usize, element_bytes: usize) -> Cost {
    Cost { rounds: 1, bytes: [(planes * bits * element_bytes) as u64, 0, 0] }
}

/// [Noise injection](crate::release::Aggregate::inject) into `count` sums.
pub fn inject(count: usize, element_bytes: usize) -> Cost {
    Cost { rounds: 1, bytes: [(count * element_bytes) as u64; 3] }
}

/// [Resharing](crate::release::Aggregate::reshare) of `count` sums.
pub fn reshare(count: usize, element_bytes: usize) -> Cost {
    inject(count, element_bytes)
}

/// The [largest count](crate::consensus::Counts::maximum) of `rows` rows, each at most `largest`.
pub fn maximum(rows: usize, classes: usize, largest: u64, element_bytes: usize) -> Cost {
    let selected = select(rows * classes, element_bytes).bytes;
    // What the selection deals leaves with the comparisons' tables.
    one_hot_argmax(rows, classes, consensus::window_of(largest)).add(1, selected)
}

/// [Opening of decisions](crate::release::Noised::open_among_servers) of `rows` rows.
pub fn open_decisions(rows: usize) -> Cost {
    Cost { rounds: 1, bytes: [16 * packed_words(1, rows) as u64; 3] }
}

/// The [zero test](crate::zero_test) of `rows` rows of sums.
pub fn zero_test(rows: usize, element_bytes: usize) -> Cost {
    Cost { rounds: 2, bytes: [((rows + 2) * element_bytes) as u64; 3] }
}

/// A look-up of `count` values in tables of `table` elements of Z_2^64 each, the entries' terms
/// included; see [`crate::probability`].
pub fn look_up(count: usize, table: usize) -> Cost {
    dealt_elements(table, count, 8)
}

/// [Products](crate::product::multiply_rows): `count` of them.
pub fn multiply(count: usize, element_bytes: usize) -> Cost {
    Cost { rounds: 1, bytes: [(count * element_bytes) as u64; 3] }
}

/// [Exact truncation](crate::truncation::sum_truncated) of `count` elements.
pub fn sum_truncated(count: usize) -> Cost {
    Cost { rounds: 1, bytes: [(count * 8) as u64, 0, 0] }
}

/// [Sum of probabilities](crate::probability::sum_of_probabilities) of `rows` rows. The bytes are by
/// distance from the dealer of the argmax; the server after it deals the rest.
pub fn probabilities(rows: usize, classes: usize, window: u32, score_bits: u32) -> Cost {
    let values = rows * classes;
    let [exponential, coarse, fine] = probability::table_elements(classes);
    let argmax = one_hot_argmax(rows, classes, window);
    let parts = [
        select(values, 8),
        look_up(values, exponential),
        sign(values, probability::clamp_window(window, score_bits)),
        select(values, 8),
        look_up(rows, coarse),
        multiply(values, 8),
        look_up(rows, fine),
        multiply(values, 8),
        sum_truncated(values),
    ];
    let [a, b, c] = parts.iter().fold([0; 3], |sums, part| {
        let [a, b, c] = sums;
        [a + part.bytes[0], b + part.bytes[1], c + part.bytes[2]]
    });
    let whole = argmax.add(0, [c, a, b]);
    Cost { rounds: probability_rounds(classes, window, score_bits), ..whole }
}

/// The longest chain of messages of [`probabilities`], which overlap: a table goes out in the round in
/// which the evaluators exchange the result before, because its dealer received nothing there.
fn probability_rounds(classes: usize, window: u32, score_bits: u32) -> u32 {
    let dealt = |times: usize| [&DEALER_MESSAGES[..], &EXCHANGE_MESSAGES].repeat(times);
    let compared = |window: u32| dealt(1 + comparison::joins(Layout::new(window).blocks()).len());
    let (selected, looked_up) = (dealt(1), dealt(1));
    let argmax = [compared(window), dealt(votes::tree(classes).levels.len())].concat();
    let rest = [
        &selected[..],
        &looked_up,
        &compared(probability::clamp_window(window, score_bits)),
        &selected,
        &looked_up,
        &[&product::MESSAGES[..]],
        &looked_up,
        &[&product::MESSAGES[..], &DEALER_MESSAGES],
    ]
    .concat();
    let steps = argmax.into_iter().map(|messages| (0, messages)).chain(rest.into_iter().map(|m| (1, m)));
    let mut depths = [0; 3];
    for (dealer, messages) in steps {
        let before = depths;
        for &(from, to) in messages {
            let (from, to) = ((dealer + from) % 3, (dealer + to) % 3);
            depths[to] = depths[to].max(before[from] + 1);
        }
    }
    depths.into_iter().max().unwrap_or(0)
}

/// The table of the usual sizes in Markdown: bits for each value where a server's message holds
/// bits, for windows of 16, 24, 32 and 64.
pub fn markdown_table() -> String {
    let many = 64 * 64;
    let per_value = |bytes: u64, values: usize| bytes as f64 * 8.0 / values as f64;
    let and = |factors: usize| polynomials(&[Polynomial::product((0..factors).collect())], many);
    let mut rows: Vec<(String, Cost, usize)> = vec![
        ("rescale, one element of Z_2^64".into(), rescale(many, 8), many),
        ("rescale, one element of Z_2^32, of which 32 - f bits are used".into(), rescale(many, 4), many),
        ("AND of two bits".into(), and(2), many),
        ("AND of four bits".into(), and(4), many),
    ];
    for window in [16, 24, 32, 64] {
        rows.push((format!("sign, {window}-bit window"), sign(many, window), many));
    }
    rows.push(("selection (bit times value), one element of Z_2^64".into(), select(many, 8), many));
    rows.push(("selection that widens to Z_2^32, one element".into(), widen(many, 4), many));
    for classes in [2, 10] {
        let name = format!("one-hot argmax, {classes} classes, 32-bit window, one row");
        rows.push((name, one_hot_argmax(many, classes, 32), many));
    }
    rows.push(("sum of bits into Z_2^64, one bit".into(), sum_bits(1, many, 8), many));
    rows.push(("noise injection, one element of Z_2^64".into(), inject(many, 8), many));
    rows.push(("resharing of sums, one element of Z_2^64".into(), reshare(many, 8), many));
    let name = "largest of 10 counts of 50 votes at most, one row".into();
    rows.push((name, maximum(many, 10, 50, 8), many));
    rows.push(("opening of decisions, one row".into(), open_decisions(many), many));
    rows.push(("product, one element of Z_2^64".into(), multiply(many, 8), many));
    rows.push(("exact truncation and sum, one element of Z_2^64".into(), sum_truncated(many), many));
    for (name, table) in ["exponential", "coarse reciprocal, 10 classes", "fine reciprocal"]
        .into_iter()
        .zip(probability::table_elements(10))
    {
        rows.push((format!("look-up, {name}: {table} elements"), look_up(many, table), many));
    }
    for classes in [2, 10] {
        let name = format!("probabilities, {classes} classes, 32-bit window, 12 fractional bits, one row");
        rows.push((name, probabilities(many, classes, 32, 12), many));
    }
    let mut table = String::from(
        "| protocol | rounds | dealer sends (bits) | first evaluator | second evaluator |\n|---|---|---|---|---|\n",
    );
    for (name, cost, values) in rows {
        let [a, b, c] = cost.bytes.map(|bytes| per_value(bytes, values));
        table += &format!("| {name} | {} | {a} | {b} | {c} |\n", cost.rounds);
    }
    table
}
