//! The privacy ledger in PostgreSQL, for a party that can run its server on one of several hosts.
//!
//! All rules are those of [`StoredLedger`](concilium_privacy::StoredLedger); here is only where its rows
//! are: [`PostgresStore`]. A server on one host needs none of this and keeps its ledger in a file.
//!
//! # One writer
//! The session that writes holds an advisory lock of the database, so a second host that is started on the
//! same ledger is refused until the first has ended or lost its session. A writer that has lost its session
//! connects again and goes on only if nobody has held the lock meanwhile: each holder counts up a
//! generation. Reservations live in the memory of one process, so a process that was replaced may never
//! write again, and is told so when it reads. Nothing is read either while the fate of a write is not known:
//! the session that was lost keeps the lock until the database has ended its last statement.
//!
//! # Durability
//! [`PostgresStore::open`] refuses a server with `fsync` or `full_page_writes` off, and turns
//! `synchronous_commit` on for its session. All changes of one call are one statement and therefore one
//! transaction.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

mod connect;
mod error;
mod store;

pub use self::{
    connect::{PostgresOptions, check_url, load_certificates},
    error::PostgresError,
    store::{PostgresStore, PostgresView},
};
