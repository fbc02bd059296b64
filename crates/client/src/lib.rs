//! Client library: shares inputs, calls three servers, cross-checks and reconstructs answers.
//!
//! - [`config`], [`connection`]: where the three servers are, and mutually authenticated channels to
//!   them.
//! - [`task`]: what the servers announce, as long as all three announce the same.
//! - [`inputs`]: rows and labels from `.npy`, `.npz` and CSV files.
//! - [`predict`]: the whole way of a query. Its parts are [`sharing`], [`retry`], [`repeat`] and [`answer`].
//! - [`confidence`]: how sure a noisy histogram makes its label.
//! - [`budget`]: what was spent; [`budget_tables`] prints it. [`operations`]: how the servers are and what they log.
//! - [`terminal`]: what the programs have in common.
//!
//! Nothing that a single server sends is believed: tasks and receipts must be equal on all three, and
//! each component of an answer comes from two servers and is compared.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

pub mod answer;
pub mod budget;
pub mod budget_tables;
pub mod confidence;
pub mod config;
pub mod connection;
pub mod export;
pub mod inputs;
pub mod operations;
pub mod predict;
pub mod probabilities;
pub mod repeat;
pub mod retry;
mod server_error;
pub mod sharing;
pub mod task;
pub mod terminal;

pub use config::ConnectionConfig;
pub use connection::{Connection, ServerError};
pub use predict::Predictor;
pub use repeat::RepeatKey;
pub use task::Task;
