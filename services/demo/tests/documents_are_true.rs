//! What the documents say about messages, links and commands is so.

mod documents;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap::error::ErrorKind;
use concilium_rpc::status::TABLE;
use documents::{read, root};

/// Stands in a title for the parts of a message that differ.
const GAP: &str = "…";

/// All documents for users.
fn documents() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("docs")).expect("the documents are there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    paths.push(root().join("README.md"));
    paths.sort();
    paths
}

/// Titles of the sections of this depth.
fn titles<'a>(document: &'a str, depth: &str) -> impl Iterator<Item = &'a str> {
    outside_of_blocks(document).filter_map(move |line| line.strip_prefix(depth)?.strip_prefix(' '))
}

/// The lines that are not in a fenced block.
fn outside_of_blocks(document: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    document.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// A message's text up to its remedy, with gaps for its fields.
fn fixed_part(message: &str) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('{') {
        let (_, after) = after.split_once('}').expect("a field ends");
        text += before;
        text += GAP;
        rest = after;
    }
    text += rest;
    text.split_once("; ").map_or(text.as_str(), |(cause, _)| cause).to_owned()
}

#[test]
fn every_reason_has_a_section_titled_by_its_message() {
    let source = read(&root().join("crates/rpc/src/status.rs"));
    let document = read(&root().join("docs/troubleshooting.md"));
    let found: BTreeSet<&str> = titles(&document, "###").collect();
    assert!(TABLE.len() >= 20, "{} reasons", TABLE.len());
    for (reason, ..) in TABLE {
        let (_, entry) =
            source.split_once(&format!("\n    \"{reason}\" ")).expect("the table has the reason");
        let message = entry.lines().nth(1).expect("the message is below the reason").trim();
        let message = message.strip_prefix('"').and_then(|message| message.strip_suffix('"'));
        let title = format!("`{reason}`: {}", fixed_part(message.expect("the message is one literal")));
        assert!(found.contains(title.as_str()), "docs/troubleshooting.md has no section titled\n### {title}");
    }
}

/// All source text of the programs, without what tests of one file say.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|end| end == "rs") {
            // A literal may go on in the next line, behind a backslash.
            let source = read(&path);
            let mut lines = source.split("\\\n");
            *text += lines.next().unwrap_or_default();
            lines.for_each(|line| *text += line.trim_start());
        }
    }
}

#[test]
fn every_title_of_troubleshooting_is_a_message_of_a_program() {
    let mut text = String::new();
    for part in ["crates", "services"] {
        for member in fs::read_dir(root().join(part)).expect("the workspace's crates") {
            sources(&member.expect("an entry").path().join("src"), &mut text);
        }
    }
    let document = read(&root().join("docs/troubleshooting.md"));
    let mut checked = 0;
    for title in titles(&document, "###") {
        let message = title.split_once("`: ").filter(|(reason, _)| !reason.contains(' '));
        let message = message.map_or(title, |(_, message)| message);
        for piece in message.split(GAP).map(|piece| piece.trim_matches(['`', ' ', ':', '(', ')'])) {
            assert!(text.contains(piece), "no program says {piece:?}, as the title {title:?} does");
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} pieces of messages");
}

/// The anchor that is made of a title, as GitHub does it.
fn anchor(title: &str) -> String {
    let lower = title.to_lowercase();
    let kept = lower.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for path in documents() {
        let document = read(&path);
        let text: Vec<&str> = outside_of_blocks(&document).collect();
        for link in text.join("\n").split("](").skip(1) {
            let (target, _) = link.split_once(')').expect("a link ends");
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, section) = target.split_once('#').unwrap_or((target, ""));
            let folder = path.parent().expect("a file is in a folder");
            let linked = if file.is_empty() { path.clone() } else { folder.join(file) };
            assert!(linked.exists(), "{}: the link {target} leads to no file", path.display());
            if !section.is_empty() {
                let linked = read(&linked);
                let mut all = ["#", "##", "###"].into_iter().flat_map(|depth| titles(&linked, depth));
                let found = all.any(|title| anchor(title) == section);
                assert!(found, "{}: the link {target} leads to no section", path.display());
            }
        }
    }
    assert!(links > 30, "{links} links");
}

/// Files that a cell of a table names, each with the tests after it.
fn named_tests(cell: &str) -> Vec<(&str, Vec<&str>)> {
    let mut files: Vec<(&str, Vec<&str>)> = Vec::new();
    for quoted in cell.split('`').skip(1).step_by(2) {
        let is_name = quoted.contains('_')
            && quoted.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if quoted.ends_with(".rs") {
            files.push((quoted, Vec::new()));
        } else if let (true, Some((_, tests))) = (is_name, files.last_mut()) {
            tests.push(quoted);
        }
    }
    files
}

/// Whether this source has a test of this name: a function below an attribute, or in a block of properties.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(place, line)| {
        let function = line
            .split_once("fn ")
            .is_some_and(|(_, rest)| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')));
        let attribute = |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        function && place > 0 && attribute(&lines[place - 1])
    })
}

#[test]
fn the_tests_of_privacy_are_there() {
    assert!(has_test("#[test]\nfn found() {", "found") && !has_test("fn found() {", "found"));
    let document = read(&root().join("docs/privacy.md"));
    let (_, section) = document.split_once("\n## How it is tested\n").expect("the section is there");
    let (section, _) = section.split_once("\n## ").expect("another section follows");
    let mut checked = 0;
    for row in section.lines().filter(|line| line.starts_with("| ")) {
        for (file, tests) in named_tests(row) {
            let source = read(&root().join(file));
            for test in tests {
                assert!(has_test(&source, test), "{file} has no test {test}, as the table of tests says");
                checked += 1;
            }
        }
    }
    assert!(checked > 25, "{checked} tests");
}

/// The commands of all shell blocks, one in each line.
fn commands(document: &str) -> Vec<String> {
    let mut inside = false;
    let mut commands = Vec::new();
    let mut command = String::new();
    for line in document.lines().map(str::trim) {
        if line.starts_with("```") {
            inside = line == "```sh";
        } else if inside {
            command += line.trim_end_matches('\\');
            if !line.ends_with('\\') {
                commands.push(std::mem::take(&mut command));
            }
        }
    }
    commands
}

#[test]
fn command_lines_are_those_of_the_programs() {
    let programs = [
        ("concilium-client", concilium_client::arguments::Arguments::command()),
        ("concilium-demo", concilium_demo::arguments::Arguments::command()),
        ("concilium-operator", concilium_operator::arguments::Arguments::command()),
        ("concilium-owner", concilium_owner::arguments::Arguments::command()),
        ("concilium-server", concilium_server::arguments::Arguments::command()),
    ];
    let mut checked = 0;
    for path in documents() {
        for line in commands(&read(&path)) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let named = |word: &str| {
                let word = word.trim_start_matches("./").trim_end_matches(".new");
                programs.iter().find(|(name, _)| word.rsplit('/').next() == Some(name))
            };
            // Not the operand of another program: the first word, or what `until` and `setpriv` run.
            let Some((start, (_, program))) = words
                .iter()
                .enumerate()
                .take_while(|(_, word)| !["cp", "install", "cargo", "systemctl"].contains(word))
                .find_map(|(place, word)| Some((place, named(word)?)))
            else {
                continue;
            };
            let end = [">", "2>", "&", "&&", "||", "|", "#", ">>"];
            let mut arguments = Vec::new();
            for word in words[start..].iter().take_while(|word| !end.contains(word)) {
                arguments.push(word.trim_matches(['\'', '"', ';']));
                if word.ends_with(';') {
                    break;
                }
            }
            let outcome = program.clone().try_get_matches_from(arguments);
            let shows = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
            if let Err(error) = outcome.map(drop)
                && !shows.contains(&error.kind())
            {
                panic!("{}: {line}\n{error}", path.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked} command lines");
}
