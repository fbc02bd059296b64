//! The program that one of the three secure servers runs.
//!
//! A server takes requests in ([`prediction`], [`model_service`], [`budget_service`]) on a
//! multi-thread runtime and evaluates them on a thread of its own ([`evaluator`]), which owns the
//! links to the two other servers and runs batches one after the other as plain synchronous code.
//! Between the two lies the [`waiting`] room.

mod answer;
mod arrivals;
mod batch;
pub mod budget_service;
pub mod config;
pub mod context;
pub mod evaluator;
mod follower;
mod kept;
mod leader;
mod link;
pub mod log;
pub mod model_service;
pub mod models;
pub mod prediction;
mod run;
pub mod server;
pub mod task;
pub mod waiting;

pub use config::ServerConfig;
pub use server::run;
