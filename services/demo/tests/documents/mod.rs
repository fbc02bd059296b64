//! What tests of the documents share: marked commands, the programs that they call, and visible skips.

#![allow(dead_code, unused_imports, reason = "no test needs all of it")]

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;

pub(crate) use support::{programs, root, skip};

/// A block of shell commands in a document.
pub(crate) struct Block {
    /// The words of its mark: where it is run.
    pub(crate) places: Vec<String>,
    /// Its first line, for messages.
    pub(crate) line: usize,
    /// The commands.
    pub(crate) commands: String,
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks between `<!-- PLACES: begin -->` and `<!-- PLACES: end -->`, in order.
///
/// # Panics
/// If a mark holds anything but one block, or is not ended.
pub(crate) fn blocks(document: &str) -> Vec<Block> {
    let mut lines = document.lines().enumerate();
    let mut blocks = Vec::new();
    while let Some((_, line)) = lines.next() {
        let Some(places) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(": begin -->"))
        else {
            continue;
        };
        let (number, fence) = lines.next().expect("a block follows a mark");
        assert_eq!(fence, "```sh", "line {}: a mark holds one block of shell commands", number + 1);
        let commands: Vec<&str> =
            lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        let end = lines.next().map(|(_, line)| line);
        assert_eq!(end, Some(format!("<!-- {places}: end -->").as_str()), "the block of line {}", number + 1);
        blocks.push(Block {
            places: places.split_whitespace().map(str::to_owned).collect(),
            line: number + 1,
            commands: commands.join("\n") + "\n",
        });
    }
    blocks
}
