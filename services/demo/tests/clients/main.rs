//! Clients as separate processes: requests that outlive their process, and a client in another language.
#![cfg(unix)]

#[path = "../support/mod.rs"]
mod support;

mod budgets;
mod networks;
mod probabilities;
mod python;
mod repeats;
mod world;
