//! What operators see of three real server processes: state, logs, measurements and traces, and that
//! nothing secret is in any of them.

mod collector;
mod export;
mod log_filter;
mod needles;
mod scrape;
mod secrets;
mod stall;
#[path = "../support/mod.rs"]
mod support;
