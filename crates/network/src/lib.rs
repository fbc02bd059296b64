//! Neural networks: ONNX import, range analysis, quantisation and plaintext oracles.
//!
//! The crate holds no cryptography. It takes an owner's ONNX file to integers that the servers
//! can compute on, and says beforehand how exact the result will be:
//!
//! 1. [`import()`] reads a feed-forward classifier and fuses what is linear, a [`Network`]: a
//!    [`program`] of steps over values.
//! 2. [`InputDomain`] is the public range of every input feature. It fixes the power of two by
//!    which each feature is scaled, so that columns of very different magnitude are equally exact.
//! 3. [`quantise()`] turns the network into fixed point, a [`FixedNetwork`], after [`range`] has proven
//!    that every intermediate value leaves the headroom that truncation needs in the task's [`Ring`],
//!    that of 64 bits or that of 32.
//! 4. [`Architecture`] is the part of the result that is public: operations, sizes, bounds and
//!    comparison windows, but no weight.
//!
//! ```
//! use concilium_network::{InputDomain, Network, Ring, Rounding, argmax, choose_fractional_bits, quantise};
//! use ndarray::array;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let layer = (array![[1.0, -1.0], [0.5, 2.0]], array![0.0, 0.25]);
//! let network = Network::perceptron(vec![2], vec![layer])?;
//! let domain = InputDomain::new(vec![2], vec![0.0], vec![4000.0, 0.001])?;
//!
//! let fractional_bits = choose_fractional_bits(Ring::Bits64, [&network], &domain)?;
//! let fixed = quantise(&network, &domain, fractional_bits)?;
//! let inputs = array![[100.0, 0.0005], [0.0, 0.001]];
//! let logits = fixed.evaluate(domain.encode(inputs.view(), fractional_bits)?.view(), Rounding::Nearest);
//! assert_eq!(argmax(logits.view()), network.votes(inputs.view()));
//! # Ok(())
//! # }
//! ```
//!
//! [`Network::evaluate`] and [`FixedNetwork::evaluate`] are the plaintext oracles that the secure
//! evaluation is tested against, and [`Check`] is the report that an owner reads before sharing.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

pub mod architecture;
pub mod check;
mod ending;
mod erase;
mod error_bound;
pub mod fixed;
pub mod import;
pub mod input;
pub mod limits;
pub mod model;
pub mod onnx;
pub mod precision;
pub mod program;
pub mod quantise;
pub mod range;

pub use architecture::{Architecture, ArchitectureError, StepShape};
pub use check::Check;
pub use ending::Ending;
pub use fixed::{FixedNetwork, FixedStep, Rounding, StepError};
pub use import::{
    Extract, ImportError, ImportOptions, extract_file, import, import_file, import_file_with, import_with,
};
pub use input::{InputDomain, InputError};
pub use model::{Network, NetworkError, Step, argmax};
pub use precision::{Precision, Ring, RingError, RingRefusal};
pub use program::{Convolution, Function, MatrixProduct, Operation, ProgramError, Weights};
pub use quantise::{QuantiseError, choose_fractional_bits, quantise};
