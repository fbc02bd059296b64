//! What a server logs, as operators write it, and the bound that no filter passes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, FilterFn};

/// Begin of the names of this project's crates, whose events hold no secret at any level.
pub(super) const OWN_TARGETS: &str = "concilium";

/// Highest level at which events of other libraries are logged. Below it HTTP/2, TLS and gRPC write
/// down frames, handshakes and headers: what passes through them includes shares and keys.
const FOREIGN_LEVEL: Level = Level::INFO;

/// Longest filter, in bytes.
const MAXIMUM_BYTES: usize = 4096;

/// A checked filter in the syntax of `RUST_LOG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter {
    text: String,
}

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LogFilterError {
    /// Nothing is written.
    #[error("is empty; write a level such as `info`, or `off` to log nothing")]
    Empty,
    /// Too much is written.
    #[error("has {0} bytes; at most {MAXIMUM_BYTES} are allowed")]
    TooLong(usize),
    /// One of the parts between the commas is wrong.
    #[error("has the part `{part}`, which {problem}")]
    Part {
        /// The part.
        part: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
}

impl LogFilter {
    /// The filter as it was written, without spaces around its parts.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn to_env_filter(&self) -> EnvFilter {
        // Every part was read before. Directives of a bad part would be left out, which logs less.
        EnvFilter::builder().parse_lossy(&self.text)
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        if text.len() > MAXIMUM_BYTES {
            return Err(LogFilterError::TooLong(text.len()));
        }
        if text.trim().is_empty() {
            return Err(LogFilterError::Empty);
        }
        let parts: Vec<_> = parts(text).into_iter().map(str::trim).collect();
        for &part in &parts {
            check(part).map_err(|problem| LogFilterError::Part { part: part.to_owned(), problem })?;
        }
        Ok(LogFilter { text: parts.join(",") })
    }
}

/// Cuts at the commas that are not inside the brackets of a span.
fn parts(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|letter| {
        match letter {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    })
    .collect()
}

fn check(part: &str) -> Result<(), String> {
    const FORM: &str = "write a level (off, error, warn, info, debug, trace) or TARGET=LEVEL";
    if part.is_empty() {
        return Err(format!("is empty; {FORM}"));
    }
    // A span's fields may hold `=` too; the level comes after the last bracket.
    let after_span = part.rfind(']').map_or(0, |bracket| bracket + 1);
    let (scope, level) = match part[after_span..].find('=') {
        Some(sign) => (&part[..after_span + sign], &part[after_span + sign + 1..]),
        None if after_span == part.len() => (part, "trace"),
        // Taken literally a misspelt level would log everything of a target of that name.
        None => ("", part),
    };
    let Ok(level) = LevelFilter::from_str(level) else {
        return Err(format!("ends in no level; {FORM}"));
    };
    let target = scope.split('[').next().unwrap_or_default();
    if !target.is_empty() && !target.starts_with(OWN_TARGETS) && level > LevelFilter::from(FOREIGN_LEVEL) {
        return Err(format!(
            "asks for more than `{}` of another library, which would log what passes through it; \
             use `{target}=info` or a target that begins with `{OWN_TARGETS}`",
            FOREIGN_LEVEL.as_str().to_lowercase()
        ));
    }
    Directive::from_str(part).map(drop).map_err(|error| format!("can't be read ({error}); {FORM}"))
}

/// Keeps the details of other libraries out of every log and export, whatever a filter says.
pub(crate) fn cap() -> FilterFn<fn(&Metadata<'_>) -> bool> {
    // Without the hint the whole filter would count as one that may want everything.
    FilterFn::new(within_cap as fn(&Metadata<'_>) -> bool).with_max_level_hint(LevelFilter::TRACE)
}

fn within_cap(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= FOREIGN_LEVEL || metadata.target().starts_with(OWN_TARGETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_mistakes_named() {
        for good in [
            "info",
            "OFF",
            " warn , concilium_server=debug",
            "concilium_server[batch{task=digits, session=3}]=trace,info",
            "concilium_server[batch]",
            "h2=info",
            "tonic=off",
        ] {
            let filter: LogFilter = good.parse().unwrap_or_else(|error| panic!("{good}: {error}"));
            assert_eq!(filter.as_str().parse(), Ok(filter.clone()));
        }
        for (bad, part, hint) in [
            ("inof", "inof", "off, error, warn"),
            ("info,,debug", "", "is empty"),
            ("info,concilium_server=loud", "concilium_server=loud", "no level"),
            ("concilium_server", "concilium_server", "TARGET=LEVEL"),
            ("info,h2=trace", "h2=trace", "h2=info"),
            ("rustls[x]=debug", "rustls[x]=debug", "another library"),
            ("info,concilium[a=b=debug", "concilium[a=b=debug", "no level"),
        ] {
            let error = bad.parse::<LogFilter>().expect_err(bad);
            assert!(matches!(&error, LogFilterError::Part { part: named, .. } if named == part), "{error}");
            assert!(error.to_string().contains(hint), "{error}");
        }
        assert_eq!(" ".parse::<LogFilter>(), Err(LogFilterError::Empty));
        let long = "info,".repeat(1000);
        assert_eq!(long.parse::<LogFilter>(), Err(LogFilterError::TooLong(5000)));
    }
}
