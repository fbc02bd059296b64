//! From the text of a file and the variables to checked settings, without stopping at the first fault.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use config::{Config, File, FileFormat};
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::key::{Given, Key};
use super::problem::{Origin, Problem, Severity, shown};
use super::{SEPARATOR, VARIABLE_PREFIX};

/// Largest configuration file that is read, in bytes.
const MAXIMUM_FILE_BYTES: u64 = 1 << 20;

/// A file that is TOML, and the line of each of its keys.
pub(crate) struct Document {
    pub(crate) path: PathBuf,
    pub(crate) table: Table,
    lines: BTreeMap<String, usize>,
}

impl Document {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, Vec<Problem>> {
        let unreadable = |problem: String| {
            let remedy = "name a readable TOML file";
            vec![Problem::of_file(path.to_owned(), Origin::Default, problem, remedy)]
        };
        let failed = |error: std::io::Error| unreadable(format!("can't be read: {error}"));
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.len() > MAXIMUM_FILE_BYTES {
            return Err(unreadable(format!("is larger than {MAXIMUM_FILE_BYTES} bytes")));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(failed)?, path)
    }

    /// Takes the text of a file.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, Vec<Problem>> {
        let (parsed, errors) = DeTable::parse_recoverable(text);
        let line_of = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        let table = if errors.is_empty() { toml::from_str::<Table>(text) } else { Ok(Table::new()) };
        let errors = errors.into_iter().chain(table.as_ref().err().cloned());
        let problems: Vec<_> = errors
            .map(|error| {
                let origin = error.span().map_or(Origin::Default, |span| Origin::Line(line_of(span.start)));
                let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join(", ");
                let problem = format!("is no TOML: {message}");
                Problem::of_file(path.to_owned(), origin, problem, "correct the line")
            })
            .collect();
        let mut lines = BTreeMap::new();
        note_lines(parsed.get_ref(), "", &line_of, &mut lines);
        match table {
            Ok(table) if problems.is_empty() => Ok(Document { path: path.to_owned(), table, lines }),
            _ => Err(problems),
        }
    }

    /// Where a key of the file stands.
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.lines.get(key).map_or(Origin::Default, |line| Origin::Line(*line))
    }

    /// A problem with something in the file that is not among the settings.
    pub(crate) fn problem(&self, key: &str, value: Option<&Value>, problem: String, remedy: &str) -> Problem {
        Problem {
            key: key.to_owned(),
            value: value.map(shown),
            ..Problem::of_file(self.path.clone(), self.origin(key), problem, remedy)
        }
    }
}

fn note_lines(
    table: &DeTable<'_>,
    prefix: &str,
    line_of: &impl Fn(usize) -> usize,
    lines: &mut BTreeMap<String, usize>,
) {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        lines.insert(name.clone(), line_of(key.span().start));
        if let DeValue::Table(inner) = value.get_ref() {
            note_lines(inner, &format!("{name}."), line_of, lines);
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// The settings of a server's file, or of one task of a task file.
pub(crate) struct Settings {
    file: PathBuf,
    /// Stands before the keys in messages: empty, or `tasks.NAME.`.
    prefix: String,
    keys: &'static [Key],
    settings: BTreeMap<&'static str, Setting>,
    /// Keys that are missing or have a value that can't be one.
    bad: BTreeSet<&'static str>,
    pub(crate) problems: Vec<Problem>,
}

impl Settings {
    /// The settings in `table`, which stands below `prefix` in `document`.
    pub(crate) fn read(document: &Document, prefix: &str, table: &Table, keys: &'static [Key]) -> Self {
        let mut settings = Self::empty(&document.path, prefix, keys);
        settings.take(document, "", table);
        settings
    }

    /// No settings yet.
    pub(crate) fn empty(file: &Path, prefix: &str, keys: &'static [Key]) -> Self {
        Settings {
            file: file.to_owned(),
            prefix: prefix.to_owned(),
            keys,
            settings: BTreeMap::new(),
            bad: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    fn take(&mut self, document: &Document, section: &str, table: &Table) {
        for (name, value) in table {
            let name = format!("{section}{name}");
            let full = format!("{}{name}", self.prefix);
            let is_section = self.keys.iter().any(|key| key.name.starts_with(&format!("{name}.")));
            if let Some(key) = self.keys.iter().find(|key| key.name == name) {
                let setting = Setting { value: value.clone(), origin: document.origin(&full) };
                self.settings.insert(key.name, setting);
            } else if let (true, Value::Table(inner)) = (is_section, value) {
                self.take(document, &format!("{name}."), inner);
            } else if is_section {
                let remedy = format!("write a section [{full}] with keys of its own");
                self.problems.push(document.problem(&full, Some(value), "is no section".into(), &remedy));
            } else {
                let remedy = self.suggestion(&name);
                self.problems.push(document.problem(&full, None, "is unknown".into(), &remedy));
            }
        }
    }

    /// What somebody may have meant who wrote `name`.
    fn suggestion(&self, name: &str) -> String {
        // A key in the wrong section is as common as a misspelt one, so names are compared with and
        // without their sections.
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        let distance = |key: &Key| {
            let whole = strsim::osa_distance(name, key.name);
            whole.min(strsim::osa_distance(&last(name), &last(key.name)))
        };
        let nearest =
            self.keys.iter().min_by_key(|key| (distance(key), strsim::osa_distance(name, key.name)));
        match nearest.filter(|key| distance(key) <= 1 + last(name).len() / 4) {
            Some(key) => format!("did you mean `{}{}`?", self.prefix, key.name),
            None => "remove it; `concilium-server config schema` lists the keys".to_owned(),
        }
    }

    /// Takes the variables of the project's prefix, which win over the file.
    pub(crate) fn override_with(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (variable, text) in variables {
            let Some(rest) = variable.strip_prefix(VARIABLE_PREFIX) else { continue };
            let name = rest.to_lowercase().replace(SEPARATOR, ".");
            let origin = Origin::Variable(variable.clone());
            match self.keys.iter().find(|key| key.name == name) {
                Some(key) => {
                    let setting = Setting { value: key.kind.parse(&text), origin };
                    self.settings.insert(key.name, setting);
                }
                None => {
                    let remedy = match self.suggestion(&name) {
                        remedy if remedy.starts_with("remove") => {
                            "unset the variable; `concilium-server config schema` lists the keys".to_owned()
                        }
                        remedy => remedy,
                    };
                    let problem = "is unknown".to_owned();
                    let whole = Problem::of_file(self.file.clone(), origin, problem, &remedy);
                    self.problems.push(Problem { key: name, ..whole });
                }
            }
        }
    }

    /// Checks every value by itself, fills in defaults and complains about what is missing.
    pub(crate) fn complete(&mut self) {
        for key in self.keys {
            match (self.settings.get(key.name), key.given) {
                (Some(setting), _) => {
                    if let Err((problem, remedy)) = key.kind.check(&setting.value) {
                        self.complain(key.name, problem, &remedy);
                        self.bad.insert(key.name);
                    }
                }
                (None, Given::Default(_)) => {
                    self.settings.insert(key.name, Setting { value: key.sample(), origin: Origin::Default });
                }
                (None, Given::Required(example)) => {
                    let problem = "is missing".to_owned();
                    let remedy = match (self.prefix.is_empty(), key.name.rsplit_once('.')) {
                        (true, Some((section, last))) => {
                            format!("add it to [{section}], for example {last} = {example}")
                        }
                        _ => format!("add it, for example {} = {example}", key.name),
                    };
                    self.complain(key.name, problem, &remedy);
                    self.bad.insert(key.name);
                }
                (None, Given::Optional { .. }) => {}
            }
        }
    }

    /// Notes an error of this key.
    pub(crate) fn complain(&mut self, key: &'static str, problem: String, remedy: &str) {
        let problem = self.problem(key, problem, remedy);
        self.problems.push(problem);
    }

    /// Notes a warning about this key.
    pub(crate) fn warn(&mut self, key: &'static str, problem: String, remedy: &str) {
        let problem = self.problem(key, problem, remedy).warning();
        self.problems.push(problem);
    }

    /// An error of this key.
    pub(crate) fn problem(&self, key: &str, problem: String, remedy: &str) -> Problem {
        let setting = self.settings.get(key);
        let origin = setting.map_or(Origin::Default, |setting| setting.origin.clone());
        Problem {
            key: format!("{}{key}", self.prefix),
            value: setting.map(|setting| shown(&setting.value)),
            ..Problem::of_file(self.file.clone(), origin, problem, remedy)
        }
    }

    /// Whether all of these keys have a usable value.
    pub(crate) fn are_good(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| self.settings.contains_key(key) && !self.bad.contains(key))
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_sound(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity == Severity::Warning)
    }

    /// All keys in the order of the description, with their settings unless they are left out.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static Key, Option<&Setting>)> {
        self.keys.iter().map(|key| (key, self.settings.get(key.name)))
    }

    /// Whether the key is given, well or badly.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        self.settings.contains_key(key)
    }

    /// What the program works with: defaults, file and variables in layers, of which the later one
    /// wins. Bad settings are replaced by an example, so that the good ones can be checked against each
    /// other; see [`Self::are_good`].
    pub(crate) fn build<T: DeserializeOwned>(&self) -> Result<T, config::ConfigError> {
        let mut layers = [Table::new(), Table::new(), Table::new()];
        for key in self.keys {
            let (layer, value) = match self.settings.get(key.name) {
                _ if self.bad.contains(key.name) => (0, key.sample()),
                Some(Setting { value, origin: Origin::Default }) => (0, value.clone()),
                Some(Setting { value, origin: Origin::Line(_) }) => (1, value.clone()),
                Some(Setting { value, origin: Origin::Variable(_) }) => (2, value.clone()),
                None => continue,
            };
            insert(&mut layers[layer], key.name, value);
        }
        let builder = layers.iter().fold(Config::builder(), |builder, layer| {
            builder.add_source(File::from_str(&layer.to_string(), FileFormat::Toml))
        });
        builder.build()?.try_deserialize()
    }
}

/// Puts `value` where the dotted `name` says.
fn insert(table: &mut Table, name: &str, value: Value) {
    let mut place = table;
    let mut parts = name.split('.').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            place.insert(part.to_owned(), value);
            return;
        }
        let inner = place.entry(part).or_insert_with(|| Value::Table(Table::new()));
        // Sections hold keys or sections, never values; a test reads all keys.
        let Some(inner) = inner.as_table_mut() else { return };
        place = inner;
    }
}
