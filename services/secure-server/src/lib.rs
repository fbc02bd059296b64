//! The program that one of the three secure servers runs.
//!
//! A server takes requests in ([`prediction`], [`model_service`], [`budget_service`],
//! [`operations_service`]) on a multi-thread runtime. Between them and the two other servers lies the
//! [`waiting`] room: a thread of its own ([`evaluator`]) agrees with the others on batches, charges for them and
//! releases them, and further threads compute them, all as plain synchronous code over lanes of their own.

mod allocation;
mod answer;
pub mod arguments;
mod arrivals;
mod barrier;
mod batch;
pub mod budget_service;
pub mod calls;
mod certificates;
mod computing;
pub mod config;
pub mod context;
pub mod epochs;
mod evaluation;
pub mod evaluator;
mod export;
mod follower;
pub mod health;
pub mod history;
mod kept;
mod leader;
mod ledger;
mod ledger_watch;
mod link;
pub mod log;
pub mod metrics;
pub mod model_service;
pub mod models;
pub mod operations_service;
mod owners;
pub mod prediction;
pub mod progress;
pub mod randomness;
mod receipt;
mod release_notes;
mod retention;
mod run;
pub mod self_test;
pub mod server;
mod start;
pub mod task;
mod turns;
mod underway;
pub mod waiting;
pub mod web;

pub use config::ServerConfig;
pub use randomness::Randomness;
pub use server::run;
pub use start::start;
