//! The servers' link over mutual TLS on loopback.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod authentication;
mod common;
mod lanes;
mod reload;
