//! The whole job on one machine: three servers, many owners and a client.
//!
//! [`run`] is the way of a demonstration: [`data`] brings models and inputs, [`task`] the policy that
//! pays for the queries, [`cluster`] three server processes. Owners share their models and a client
//! asks through the ordinary libraries. [`figures`] and [`simulation`] compute in the clear what the
//! answers are compared with, and [`report`] says it. [`mod@bench`] measures what queries cost.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

pub mod arguments;
pub mod bench;
pub mod cluster;
pub mod data;
pub mod error;
pub mod figures;
pub mod folder;
pub mod interruption;
mod progress;
pub mod report;
pub mod run;
pub mod server;
pub mod simulation;
pub mod task;
