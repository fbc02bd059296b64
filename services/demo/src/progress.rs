//! Progress and notes, on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};

/// Writes one line to standard error. That nobody reads it any more does not stop the work.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A bar over `length` things, and a line for readers of a file.
pub(crate) fn bar(doing: &'static str, length: usize, things: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        say(format_args!("{doing} {length} {things}"));
        return ProgressBar::hidden();
    }
    let template = format!("{{msg}} {{bar:40}} {{pos}}/{{len}} {things}  {{elapsed}} elapsed, {{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_style(style).with_message(doing)
}
