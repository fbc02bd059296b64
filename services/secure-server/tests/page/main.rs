//! The operator's page: over HTTP from real server processes, and in a real browser.

mod browser;
mod rendered;
mod requests;
mod samples;
#[path = "../support/mod.rs"]
mod support;
