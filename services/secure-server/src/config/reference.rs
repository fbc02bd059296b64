//! The description of all keys as text for a terminal, as JSON and as the documentation.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::key::{Given, Key};
use super::keys::{SERVER_KEYS, TASK_FILE_KEYS, TASK_KEYS};

/// The files, what they are, and their keys.
const FILES: [(&str, &str, &str, &[Key]); 3] = [
    ("server.toml", "server", "one for each server; variables override its keys", SERVER_KEYS),
    (
        "tasks.toml before its sections",
        "task_file",
        "for all tasks together; equal on all three servers, and no variable overrides them",
        TASK_FILE_KEYS,
    ),
    (
        "tasks.toml",
        "tasks",
        "equal on all three servers; keys of a task stand below [tasks.NAME], and no variable overrides them",
        TASK_KEYS,
    ),
];

fn default(key: &Key) -> String {
    match key.given {
        Given::Required(_) => "required".to_owned(),
        Given::Default(text) => format!("default {text}"),
        Given::Optional { absent, .. } => format!("without it: {absent}"),
    }
}

/// All keys for a terminal.
pub fn text() -> String {
    let mut text = String::new();
    for (file, _, about, keys) in FILES {
        let _ = writeln!(text, "{file}: {about}\n");
        for key in keys {
            let _ = writeln!(text, "  {}  ({}; {})", key.name, key.kind.describe(), default(key));
            let _ = writeln!(text, "      {}", key.meaning);
        }
        text.push('\n');
    }
    text
}

/// All keys for programs.
pub fn json() -> Value {
    let describe = |key: &Key, variable: bool| {
        let (required, default) = match key.given {
            Given::Required(_) => (true, None),
            Given::Default(text) => (false, Some(text)),
            Given::Optional { .. } => (false, None),
        };
        let example = match key.given {
            Given::Required(text) | Given::Default(text) | Given::Optional { example: text, .. } => text,
        };
        json!({
            "key": key.name,
            "type": key.kind.describe(),
            "required": required,
            "default": default,
            "example": example,
            "variable": variable.then(|| key.variable()),
            "meaning": key.meaning,
        })
    };
    let files = FILES.map(|(_, name, _, keys)| {
        let keys = keys.iter().map(|key| describe(key, name == "server")).collect();
        (name.to_owned(), Value::Array(keys))
    });
    Value::Object(files.into_iter().collect())
}

/// All keys as `docs/configuration.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Configuration\n\nGenerated from `services/secure-server/src/config/keys.rs`, by which the files are \
         read; a test keeps it true. `concilium-server config schema` prints the same, `config check` reports \
         everything that is wrong with a configuration, and `config print` shows the values in effect and where \
         each comes from. Samples of all files are in [samples](samples): the basic ones hold what must be \
         given, those in [samples/advanced](samples/advanced) every key.\n\n\
         Unknown keys are errors. Relative paths start at the file's folder. A variable overrides a key of the \
         server's file: `CONCILIUM_LIMITS__BATCH_ROWS=64` sets `limits.batch_rows`; lists are separated by \
         commas. Decimal numbers that decide about privacy are read as they are written, without binary \
         rounding; a text in quotes is taken as well.\n",
    );
    for (file, _, about, keys) in FILES {
        let _ = write!(text, "\n## {file}\n\n{}.\n\n", capitalised(about));
        text.push_str("| key | type and limits | default | meaning |\n|---|---|---|---|\n");
        for key in keys {
            let default = match key.given {
                Given::Required(_) => "required".to_owned(),
                Given::Default(text) => format!("`{text}`"),
                Given::Optional { absent, .. } => absent.to_owned(),
            };
            let _ =
                writeln!(text, "| `{}` | {} | {default} | {} |", key.name, key.kind.describe(), key.meaning);
        }
    }
    text
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
