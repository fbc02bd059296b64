//! What is wrong with a configuration: where it stands, what it is, and what to do.

use std::fmt;
use std::path::PathBuf;

use concilium_client_library::terminal::FailureClass;
use serde::Serialize;
use thiserror::Error;

/// Characters of a value that are shown.
const SHOWN_CHARACTERS: usize = 80;

/// Whether a server starts in spite of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The server does not start.
    Error,
    /// The server starts; somebody should look.
    Warning,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A line of the file, counted from one.
    Line(usize),
    /// A variable of the environment.
    Variable(String),
    /// Nobody gave it.
    Default,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// Whether the server starts in spite of it.
    pub severity: Severity,
    /// What can be done about it, for the exit code.
    #[serde(skip)]
    pub class: FailureClass,
    /// The configuration file.
    pub file: PathBuf,
    /// Where in the file, or which variable.
    pub origin: Origin,
    /// The key with its section; empty when it concerns the whole file.
    pub key: String,
    /// The value, shortened; absent when there is none.
    pub value: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    /// A problem of the file as a whole, or of one of its lines.
    pub(crate) fn of_file(file: PathBuf, origin: Origin, problem: String, remedy: &str) -> Self {
        Problem {
            severity: Severity::Error,
            class: FailureClass::Input,
            file,
            origin,
            key: String::new(),
            value: None,
            problem,
            remedy: remedy.to_owned(),
        }
    }

    /// The same, but the server starts.
    pub(crate) fn warning(self) -> Self {
        Problem { severity: Severity::Warning, ..self }
    }

    /// The same, but of another class.
    pub(crate) fn class(self, class: FailureClass) -> Self {
        Problem { class, ..self }
    }
}

impl fmt::Display for Problem {
    /// One line: `server.toml:12: `limits.batch_rows` = 0 is out of range; use 1 to 4096`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        match &self.origin {
            Origin::Line(line) => write!(formatter, ":{line}")?,
            Origin::Variable(variable) => write!(formatter, " overridden by {variable}")?,
            Origin::Default => {}
        }
        formatter.write_str(": ")?;
        if !self.key.is_empty() {
            write!(formatter, "`{}` ", self.key)?;
        }
        if let Some(value) = &self.value {
            write!(formatter, "= {value} ")?;
        }
        write!(formatter, "{}; {}", self.problem, self.remedy)
    }
}

/// A configuration that can't be used: everything that is wrong with it, one line each.
#[derive(Debug, Error)]
#[error("{}", problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// The errors among `problems`, if there are any.
    pub(crate) fn refuse(problems: Vec<Problem>) -> Result<(), Self> {
        let problems: Vec<_> =
            problems.into_iter().filter(|problem| problem.severity == Severity::Error).collect();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }

    /// One error.
    pub(crate) fn of(problem: Problem) -> Self {
        ConfigError { problems: vec![problem] }
    }

    /// What is wrong, at least one thing.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// The class of the exit code for these problems; `None` when the server can start. What only a change
/// of the configuration mends comes before what a repetition may mend.
pub fn failure_class(problems: &[Problem]) -> Option<FailureClass> {
    let errors = || problems.iter().filter(|problem| problem.severity == Severity::Error);
    [FailureClass::Input, FailureClass::Local, FailureClass::Unavailable]
        .into_iter()
        .find(|class| errors().any(|problem| problem.class == *class))
}

/// A value in one line, shortened.
pub(crate) fn shown(value: &toml::Value) -> String {
    let text = value.to_string().replace('\n', " ");
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
