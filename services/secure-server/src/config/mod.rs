//! A server's configuration: one TOML file, overridable by `CONCILIUM_*` variables, and the task
//! file that the three servers share.
//!
//! Everything that is wrong is reported at once, with file and line or variable, key, value and
//! remedy. A deserialiser stops at its first error, so files are first walked along the description of
//! their keys ([`keys`]) and only sound ones are deserialised.

mod check;
pub mod key;
pub mod keys;
mod print;
pub mod problem;
pub mod reference;
mod server;
mod source;
mod tasks;

pub(crate) use check::port_problem;
pub use check::{Check, Ports, check};
pub use problem::{ConfigError, Origin, Problem, Severity};
pub use server::{
    IdentitySection, LedgerSection, LimitSection, LogFormat, ObservabilitySection, ServerConfig, TlsSection,
    WebSection,
};
pub use tasks::{Bound, TaskFile, TaskSection};

/// Prefix of the variables that override a server's file.
const VARIABLE_PREFIX: &str = "CONCILIUM_";

/// What stands for a dot of a key in the name of a variable.
const SEPARATOR: &str = "__";

/// Variables of the project that are no configuration of a program.
const OTHER_VARIABLES: [&str; 4] =
    ["CONCILIUM_CONFIG", "CONCILIUM_REQUIRE_ALL_TESTS", "CONCILIUM_TEST_SEED", "CONCILIUM_WRITE_DOCS"];

/// The variables of the process that override keys.
pub(crate) fn variables() -> impl Iterator<Item = (String, String)> {
    // Variables that are not text cannot be ours: all keys and values are.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX) && !OTHER_VARIABLES.contains(&name.as_str()))
}

#[cfg(test)]
mod tests;
