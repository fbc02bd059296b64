//! What a model is checked against: a task of the servers, of a task file, or ranges given by hand.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use concilium_client_library::Task;
use concilium_network::{InputDomain, InputError, Network, Ring};
use serde::Deserialize;
use thiserror::Error;

/// Largest task file that is read, in bytes.
const MAXIMUM_FILE_BYTES: u64 = 1 << 24;

/// Input, classes and precision that a model must fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Shape of a row and ranges of its features.
    pub domain: InputDomain,
    /// Number of classes, if it is prescribed.
    pub classes: Option<usize>,
    /// The ring.
    pub ring: Ring,
    /// Fractional bits, if they are prescribed; otherwise the most that fit are used.
    pub fractional_bits: Option<u32>,
}

/// Why there is nothing to check against.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The task file cannot be read.
    #[error("cannot read the task file `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason that the system gives.
        source: std::io::Error,
    },
    /// The task file is too large.
    #[error("the task file `{}` is larger than {MAXIMUM_FILE_BYTES} bytes", path.display())]
    LargeFile {
        /// The file.
        path: PathBuf,
    },
    /// The task file is not one.
    #[error("task file `{}`: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The task file has no such task.
    #[error("the task file `{}` has no [tasks.{task}]; it has: {found}", path.display())]
    NoTask {
        /// The file.
        path: PathBuf,
        /// The task asked for.
        task: String,
        /// The tasks of the file, separated by commas.
        found: String,
    },
    /// The ranges cannot be used.
    #[error("the input ranges cannot be used: {0}")]
    Domain(#[from] InputError),
    /// The model has another number of classes.
    #[error("the model has {found} classes, the task has {expected}; train it for the classes of the task")]
    Classes {
        /// Classes of the model.
        found: usize,
        /// Classes of the task.
        expected: usize,
    },
}

/// The keys of a task file that concern a model. The servers check the others.
#[derive(Deserialize)]
struct TaskFile {
    tasks: BTreeMap<String, TaskSection>,
}

#[derive(Deserialize)]
struct TaskSection {
    input_shape: Vec<usize>,
    input_minimum: Bound,
    input_maximum: Bound,
    #[serde(default)]
    ring_bits: Ring,
    fractional_bits: u32,
    classes: usize,
}

/// One value for all features or one for each.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bound {
    One(f64),
    Each(Vec<f64>),
}

impl From<Bound> for Vec<f64> {
    fn from(bound: Bound) -> Self {
        match bound {
            Bound::One(value) => vec![value],
            Bound::Each(values) => values,
        }
    }
}

impl Target {
    /// A task that the servers announce.
    pub fn of_task(task: &Task) -> Self {
        Self {
            domain: task.domain.clone(),
            classes: Some(task.classes),
            ring: task.ring,
            fractional_bits: Some(task.fractional_bits),
        }
    }

    /// The task `[tasks.NAME]` of the servers' task file.
    ///
    /// # Errors
    /// [`TargetError`] naming the file.
    pub fn of_file(path: &Path, task: &str) -> Result<Self, TargetError> {
        let failed = |source| TargetError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.len() > MAXIMUM_FILE_BYTES {
            return Err(TargetError::LargeFile { path: path.to_owned() });
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let mut file: TaskFile = toml::from_str(&text).map_err(|error| TargetError::Content {
            path: path.to_owned(),
            problem: error.message().to_owned(),
        })?;
        let section = file.tasks.remove(task).ok_or_else(|| TargetError::NoTask {
            path: path.to_owned(),
            task: task.to_owned(),
            found: file.tasks.keys().cloned().collect::<Vec<_>>().join(", "),
        })?;
        let TaskSection { input_shape, input_minimum, input_maximum, ring_bits, fractional_bits, classes } =
            section;
        Ok(Self {
            domain: InputDomain::new(input_shape, input_minimum.into(), input_maximum.into())?,
            classes: Some(classes),
            ring: ring_bits,
            fractional_bits: Some(fractional_bits),
        })
    }

    /// Ranges given by hand, for a model of this input shape: one value for all features or one for
    /// each.
    ///
    /// # Errors
    /// [`TargetError::Domain`].
    pub fn of_ranges(
        network: &Network,
        minimum: Vec<f64>,
        maximum: Vec<f64>,
        ring: Ring,
        fractional_bits: Option<u32>,
    ) -> Result<Self, TargetError> {
        let domain = InputDomain::new(network.input_shape().to_vec(), minimum, maximum)?;
        Ok(Self { domain, classes: None, ring, fractional_bits })
    }

    /// Refuses a network that answers another question than the task asks.
    ///
    /// # Errors
    /// [`TargetError::Classes`].
    pub fn check_classes(&self, network: &Network) -> Result<(), TargetError> {
        match self.classes {
            Some(expected) if expected != network.classes() => {
                Err(TargetError::Classes { found: network.classes(), expected })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
        [tasks.digits]
        epoch = 1
        input_shape = [8, 8]
        input_minimum = 0
        input_maximum = 1.0
        fractional_bits = 14
        classes = 10
        release = "label"
        sigma = "5"

        [tasks.heart]
        input_shape = [2]
        input_minimum = [0.0, -1.5]
        input_maximum = [4254.0, 1.5]
        fractional_bits = 12
        classes = 2
    "#;

    fn with_file<T>(text: &str, use_it: impl FnOnce(&Path) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.toml");
        fs::write(&path, text).unwrap();
        use_it(&path)
    }

    #[test]
    fn tasks_of_a_file_are_read() {
        let digits = with_file(SAMPLE, |path| Target::of_file(path, "digits")).unwrap();
        assert_eq!((digits.classes, digits.fractional_bits), (Some(10), Some(14)));
        assert_eq!((digits.domain.shape(), digits.domain.maximum()[63]), (&[8, 8][..], 1.0));
        let heart = with_file(SAMPLE, |path| Target::of_file(path, "heart")).unwrap();
        assert_eq!(heart.domain.minimum(), [0.0, -1.5]);
    }

    #[test]
    fn mistakes_name_the_file() {
        let refusal = |text: &str, task: &str| {
            let error = with_file(text, |path| Target::of_file(path, task)).unwrap_err();
            error.to_string()
        };
        let message = refusal(SAMPLE, "lungs");
        assert!(message.contains("tasks.toml") && message.contains("digits, heart"), "{message}");
        let message = refusal("[tasks.x]\ninput_shape = [2]", "x");
        assert!(message.contains("tasks.toml") && message.contains("input_minimum"), "{message}");
        assert!(refusal(&SAMPLE.replace("[8, 8]", "[0]"), "digits").contains("shape"));
        assert!(refusal("tasks", "x").contains("tasks.toml"));
        let missing = Target::of_file(Path::new("no/such/tasks.toml"), "x").unwrap_err().to_string();
        assert!(missing.contains("no/such/tasks.toml"), "{missing}");
    }
}
