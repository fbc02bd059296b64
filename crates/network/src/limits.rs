//! Limits that hold for every network and for what is read from files and peers.

/// Most layers of a network, affine and ReLU layers both counted.
pub const MAXIMUM_LAYERS: usize = 64;

/// Most inputs or outputs of one layer.
pub const MAXIMUM_SIZE: usize = 65_536;

/// Most weights of a network over all its layers (64 Mi), biases not counted.
pub const MAXIMUM_WEIGHTS: usize = 1 << 26;

/// Fewest classes that can be voted on.
pub const MINIMUM_CLASSES: usize = 2;

/// Most classes that can be voted on; the all-pairs comparison grows with their square.
pub const MAXIMUM_CLASSES: usize = 64;

/// Width in bits of the ring that the servers compute in.
pub const RING_BITS: u32 = 64;

/// Fewest bits that must be free above the range of a value before it is truncated.
///
/// Truncation of |z| < 2^l is wrong with probability at most 2^(l + 1 - 64), so this headroom keeps
/// the failure of one value below 2^-24.
pub const MINIMUM_HEADROOM_BITS: u32 = 24;

/// Largest `l` for which |z| < 2^l leaves [`MINIMUM_HEADROOM_BITS`] in the ring.
pub const MAXIMUM_BOUND_BITS: u32 = RING_BITS - 1 - MINIMUM_HEADROOM_BITS;

/// Narrowest comparison window in bits: a sign and one bit of magnitude.
pub const MINIMUM_WIDTH: u32 = 2;

/// Widest comparison window in bits.
pub const MAXIMUM_WIDTH: u32 = 40;

/// Fewest fractional bits of the fixed-point format.
pub const MINIMUM_FRACTIONAL_BITS: u32 = 8;

/// Most fractional bits of the fixed-point format.
pub const MAXIMUM_FRACTIONAL_BITS: u32 = 20;
