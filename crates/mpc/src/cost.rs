//! What the protocols cost: rounds, and payload bytes of every server.
//!
//! The figures are computed from the same layouts that the protocols use; a test runs each
//! protocol and compares its counted traffic with them, and `docs/protocol-costs.md` is the table
//! for the usual sizes.

use crate::bits::packed_words;
use crate::comparison::{self, Layout};
use crate::votes;

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

/// [Rescaling](crate::linear::rescale) of `count` elements.
pub fn rescale(count: usize, element_bytes: usize) -> Cost {
    let bytes = (count * element_bytes) as u64;
    Cost { rounds: 1, bytes: [bytes; 3] }
}

/// AND of `planes` planes of `bits` bits.
pub fn and(planes: usize, bits: usize) -> Cost {
    Cost { rounds: 1, bytes: [8 * packed_words(planes, bits) as u64; 3] }
}

/// The [sign](crate::comparison::sign) of `count` numbers in a window of `window` bits.
pub fn sign(count: usize, window: u32) -> Cost {
    let layout = Layout::new(window);
    let packed = |planes: usize| 8 * packed_words(planes, count) as u64;
    let exchange = packed(layout.exchange_planes());
    let leaves = Cost { rounds: 2, bytes: [packed(layout.all_table_planes()), exchange, exchange] };
    let (_, levels) = comparison::tree_cost(layout.blocks());
    levels.into_iter().fold(leaves, |cost, planes| cost.add(1, and(planes, count).bytes))
}

/// [Selection](crate::selection::select_unless) of `count` elements.
pub fn select(count: usize, element_bytes: usize) -> Cost {
    let bytes = (count * element_bytes) as u64;
    Cost { rounds: 2, bytes: [3 * bytes, bytes, bytes] }
}

/// [One-hot argmax](crate::votes::one_hot_argmax) of `rows` rows.
pub fn one_hot_argmax(rows: usize, classes: usize, window: u32) -> Cost {
    let compared = sign(rows * votes::comparisons(classes), window);
    let levels = votes::tree_planes(classes);
    levels.into_iter().fold(compared, |cost, planes| cost.add(1, and(planes, rows).bytes))
}

/// [Sum of bits](crate::conversion::sum_bits) of `planes` planes of `bits` bits.
pub fn sum_bits(planes: usize, bits: usize, element_bytes: usize) -> Cost {
    Cost { rounds: 1, bytes: [(planes * bits * element_bytes) as u64, 0, 0] }
}

/// [Noise injection](crate::release::Aggregate::inject) into `count` sums.
pub fn inject(count: usize, element_bytes: usize) -> Cost {
    Cost { rounds: 1, bytes: [(count * element_bytes) as u64; 3] }
}

/// The table of the usual sizes in Markdown: bits for each value where a server's message holds
/// bits, for windows of 16, 24, 32 and 64.
pub fn markdown_table() -> String {
    let many = 64 * 64;
    let per_value = |bytes: u64, values: usize| bytes as f64 * 8.0 / values as f64;
    let mut rows: Vec<(String, Cost, usize)> = vec![
        ("rescale, one element of Z_2^64".into(), rescale(many, 8), many),
        ("AND, one bit".into(), and(1, many), many),
    ];
    for window in [16, 24, 32, 64] {
        rows.push((format!("sign, {window}-bit window"), sign(many, window), many));
    }
    rows.push(("selection (bit times value), one element of Z_2^64".into(), select(many, 8), many));
    for classes in [2, 10] {
        let name = format!("one-hot argmax, {classes} classes, 32-bit window, one row");
        rows.push((name, one_hot_argmax(many, classes, 32), many));
    }
    rows.push(("sum of bits into Z_2^64, one bit".into(), sum_bits(1, many, 8), many));
    rows.push(("noise injection, one element of Z_2^64".into(), inject(many, 8), many));
    let mut table = String::from(
        "| protocol | rounds | dealer sends (bits) | first evaluator | second evaluator |\n|---|---|---|---|---|\n",
    );
    for (name, cost, values) in rows {
        let [a, b, c] = cost.bytes.map(|bytes| per_value(bytes, values));
        table += &format!("| {name} | {} | {a} | {b} | {c} |\n", cost.rounds);
    }
    table
}
