//! Limits that hold for every network and for what is read from files and peers.

/// Most steps of a network.
pub const MAXIMUM_STEPS: usize = 1_024;

/// Most layers of a network: rescalings or comparisons that wait for each other.
pub const MAXIMUM_DEPTH: usize = 128;

/// Most numbers of one value: of the input, or of a step's result.
pub const MAXIMUM_SIZE: usize = 65_536;

/// Most numbers of all values of a sample together, the input not counted (4 Mi). A function counts once for
/// each of its knots.
pub const MAXIMUM_ELEMENTS: usize = 1 << 22;

/// Most weights of a network over all its steps (64 Mi), biases not counted.
pub const MAXIMUM_WEIGHTS: usize = 1 << 26;

/// Most multiplications of a network for one sample (2 Gi).
pub const MAXIMUM_WORK: usize = 1 << 31;

/// Fewest classes that can be voted on.
pub const MINIMUM_CLASSES: usize = 2;

/// Most classes that can be voted on; the all-pairs comparison grows with their square.
pub const MAXIMUM_CLASSES: usize = 64;

/// Most pieces of which a result is gathered.
pub const MAXIMUM_PIECES: usize = 1_024;

/// Most axes of a piece.
pub const MAXIMUM_AXES: usize = 16;

/// Most values that a step takes.
pub const MAXIMUM_INPUTS: usize = 256;

/// Largest factor of a value in a sum of values.
pub const MAXIMUM_COEFFICIENT: u64 = 1 << 16;

/// Fewest bits that must be free above the range of a value before it is truncated, in the ring of 64 bits.
///
/// Truncation of |z| < 2^l is wrong with probability at most 2^(l + 1 - 64), so this headroom keeps
/// the failure of one value below 2^-24.
pub const MINIMUM_HEADROOM_BITS: u32 = 24;

/// Fewest bits that must be free above the range of a value before it is truncated, in the ring of 32 bits:
/// one besides the sign.
///
/// There truncation cannot fail, because of its result only what is right for every mask is used, its value
/// modulo 2^(32 - f). What must be proven is that nothing wraps, so that this value says which number it is:
/// z and the offset that makes it positive lie below 2^31 together if |z| < 2^30, and then
/// |z / 2^f| <= 2^(30 - f), which is inside of a comparison window of 32 - f bits.
pub const MINIMUM_HEADROOM_BITS_32: u32 = 1;

/// Narrowest comparison window in bits: a sign and one bit of magnitude.
pub const MINIMUM_WIDTH: u32 = 2;

/// Widest comparison window in bits, in the ring of 64 bits. In that of 32 it is 32 less the fractional bits.
pub const MAXIMUM_WIDTH: u32 = 40;

/// Fewest fractional bits of the fixed-point format, in the ring of 64 bits.
pub const MINIMUM_FRACTIONAL_BITS: u32 = 8;

/// Most fractional bits of the fixed-point format.
pub const MAXIMUM_FRACTIONAL_BITS: u32 = 20;

/// Fewest fractional bits in the ring of 32 bits: weights to 1/64.
pub const MINIMUM_FRACTIONAL_BITS_32: u32 = 6;

/// Most fractional bits in the ring of 32 bits: sums of products up to 4 still fit.
pub const MAXIMUM_FRACTIONAL_BITS_32: u32 = 14;
