//! Integers modulo 2^64 and 2^32, fixed point, and matrix products over them.
//!
//! Ring elements are [`std::num::Wrapping`] integers, so that `+`, `-` and `*` are the ring's
//! operations and can't overflow. Matrices are `ndarray` arrays of them. Products go through
//! [`PackedMatrix`], by the fastest [`Kernel`] that the machine can run and that passes [`self_check`].

#[cfg(not(target_endian = "little"))]
compile_error!("ring elements are sent as they lie in memory, so only little-endian machines are supported");

pub mod element;
pub mod fixed_point;
pub mod matrix;
pub mod wipe;

pub use element::{Element, Z32, Z64};
pub use fixed_point::{FixedPoint, FixedPointError};
pub use matrix::{Kernel, PackedMatrix, SelfCheck, kernel_name, self_check};
pub use wipe::{WipedBytes, wipe};
