//! What the programs have in common: where results and messages go, and exit codes.

use std::{
    error::Error,
    fmt,
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
};

use concilium_rpc::connect::describe;

/// The lines that every program's `--help` shows about its exit codes.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  a file could not be written, or another local fault
  2  the command line, configuration or input is refused
  3  the servers refuse (budget, identity, policy) or disagree
  4  a server is unavailable; the same command may succeed later";

/// Kinds of failure, by what the user can do about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// A fault of this machine.
    Local,
    /// The user's input must change.
    Input,
    /// The servers refuse or disagree.
    Refused,
    /// A server cannot be reached or is too busy.
    Unavailable,
    /// An audit has measured that a guarantee does not hold. Only programs that audit end so.
    Refuted,
}

impl FailureClass {
    /// The exit code of [`EXIT_CODES`].
    pub fn code(self) -> u8 {
        match self {
            Self::Local => 1,
            Self::Input => 2,
            Self::Refused => 3,
            Self::Unavailable => 4,
            Self::Refuted => 5,
        }
    }
}

/// Why a program ends early: one line for each thing that is wrong, and the exit code.
#[derive(Debug)]
pub struct Failure {
    class: FailureClass,
    message: String,
}

impl Failure {
    /// A failure because of `error`, whose chain of causes becomes one line.
    pub fn new(class: FailureClass, error: &(dyn Error + 'static)) -> Self {
        Self { class, message: describe(error) }
    }

    /// A failure with this message.
    pub fn message(class: FailureClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    /// The same failure, saying first what was being done.
    #[must_use]
    pub fn context(self, doing: impl fmt::Display) -> Self {
        Self { message: format!("{doing}: {}", self.message), ..self }
    }

    /// The kind of failure.
    pub fn class(&self) -> FailureClass {
        self.class
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for Failure {}

macro_rules! failures_by_class {
    ($($error:ty),+) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error.class(), &error)
            }
        }
    )+};
}

failures_by_class!(
    crate::connection::ServerError,
    crate::predict::PredictFailure,
    crate::predict::PredictError,
    crate::repeat::RepeatKeyError,
    crate::task::TaskError
);

macro_rules! failures_of_input {
    ($($error:ty),+) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(FailureClass::Input, &error)
            }
        }
    )+};
}

failures_of_input!(
    crate::config::ConfigError,
    crate::inputs::ReadError,
    concilium_network::ImportError,
    concilium_network::InputError,
    concilium_network::QuantiseError,
    concilium_rpc::connect::ConnectError,
    concilium_rpc::identity::IdentityError
);

/// Results of a program. Only what was asked for goes there; all else goes to standard error.
pub struct Output<W> {
    writer: W,
}

impl Output<io::StdoutLock<'static>> {
    /// Standard output.
    pub fn standard() -> Self {
        Self { writer: io::stdout().lock() }
    }
}

impl<W: Write> Output<W> {
    /// Results go to `writer`.
    pub fn new(writer: W) -> Self {
        Self { writer }
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be written; a reader that has seen enough (`| head`) is one of these.
    pub fn line(&mut self, line: impl fmt::Display) -> Result<(), Failure> {
        writeln!(self.writer, "{line}").map_err(|error| {
            Failure::message(FailureClass::Local, format!("cannot write the results: {error}"))
        })
    }

    /// Writes rows as a table: every column as wide as its widest cell, the first column to the left
    /// and the others to the right.
    ///
    /// # Errors
    /// As [`Self::line`].
    pub fn table(&mut self, rows: &[Vec<String>]) -> Result<(), Failure> {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            self.line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Prints the failure, if there is one, and gives the exit code.
pub fn exit(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.message.lines() {
                // Nothing is left to do about a standard error that is gone.
                let _ = writeln!(io::stderr(), "error: {line}");
            }
            ExitCode::from(failure.class.code())
        }
    }
}

/// Sends log lines to standard error, as far as the variable `RUST_LOG` asks for them; warnings
/// without it.
pub fn log_to_standard_error() {
    use tracing_subscriber::{EnvFilter, filter::LevelFilter};
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    // A second call, as in tests, keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let mut bytes = Vec::new();
        let rows =
            [["task", "rho"], ["digits", "0.25"], ["é", "1"]].map(|row| row.map(str::to_owned).to_vec());
        Output::new(&mut bytes).table(&rows).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), "task     rho\ndigits  0.25\né          1\n");
    }

    #[test]
    fn failures_tell_their_cause_in_one_line() {
        let error = crate::config::ConfigError::Variable { variable: "CONCILIUM_X".into() };
        let failure = Failure::from(error).context("reading the configuration");
        let message = failure.to_string();
        assert!(message.starts_with("reading the configuration: the variable `CONCILIUM_X`"), "{message}");
        assert!(!message.contains('\n'));
        assert_eq!(failure.class().code(), 2);
    }
}
