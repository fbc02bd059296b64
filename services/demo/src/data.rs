//! Models, inputs and labels of a demonstration: those that the program holds, or a user's.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use concilium_client_library::inputs::{ReadError, Source, read_labels, read_rows};
use concilium_network::{
    ImportError, InputDomain, InputError, Network, QuantiseError, Ring, choose_fractional_bits, import,
    import_file,
};
use concilium_rpc::identity::{MAX_NAME_LENGTH, check_name};
use ndarray::{Array1, Array2, Axis, s};
use ndarray_npy::{ReadNpyError, ReadNpyExt as _};
use thiserror::Error;

/// The shipped models: name of the file and its bytes, sorted by name.
const SHIPPED_MODELS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/shipped_models.rs"));
const SHIPPED_INPUTS: &[u8] = include_bytes!("../../../examples/digits/test_inputs.npy");
const SHIPPED_LABELS: &[u8] = include_bytes!("../../../examples/digits/test_labels.npy");
/// Name of the task of the shipped models.
const SHIPPED_TASK: &str = "digits";
/// Queries unless another number is asked for.
const DEFAULT_QUERIES: usize = 200;

/// Why models and inputs can't be used together.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// The folder of models can't be read.
    #[error("cannot read the models' folder {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The reason that the system gives.
        source: io::Error,
    },
    /// The folder has no model.
    #[error("{} holds no *.onnx file; each owner's model is one", path.display())]
    NoModels {
        /// The folder.
        path: PathBuf,
    },
    /// More owners are asked for than there are.
    #[error("{asked} owners are asked for, but there are {available} models; ask for at most {available}")]
    Owners {
        /// Owners asked for.
        asked: usize,
        /// Models at hand.
        available: usize,
    },
    /// More queries are asked for than there are rows.
    #[error("{asked} queries are asked for, but {file} has {available} rows; ask for at most {available}")]
    Queries {
        /// Queries asked for.
        asked: usize,
        /// Rows at hand.
        available: usize,
        /// Where the rows are from.
        file: String,
    },
    /// A model can't be read.
    #[error("model {file}: {source}")]
    Import {
        /// The model's file.
        file: String,
        /// What is wrong with it.
        source: ImportError,
    },
    /// Two models do not have the same classes.
    #[error(
        "model {file} has {found} classes, but {first_file} has {expected}; all owners of a task must \
         tell the same classes apart"
    )]
    Classes {
        /// The file that differs.
        file: String,
        /// Its number of classes.
        found: usize,
        /// The first file.
        first_file: String,
        /// The first file's number of classes.
        expected: usize,
    },
    /// Inputs do not fit a model.
    #[error(
        "model {file} takes {expected} features (shape {shape:?}), but {inputs} has {found} values in \
         each row; give inputs that are prepared as for the model"
    )]
    Features {
        /// The model's file.
        file: String,
        /// Its shape of one sample.
        shape: Vec<usize>,
        /// Its number of features.
        expected: usize,
        /// Where the inputs are from.
        inputs: String,
        /// Values in each row.
        found: usize,
    },
    /// Inputs and labels differ in number.
    #[error("{labels} has {found} labels for the {expected} rows of {inputs}; give one for each row")]
    LabelCount {
        /// Where the labels are from.
        labels: String,
        /// Number of labels.
        found: usize,
        /// Where the inputs are from.
        inputs: String,
        /// Number of rows.
        expected: usize,
    },
    /// A label is not a class of the models.
    #[error("{labels} row {row}: label {value}, but the models have the classes 0 to {}", classes - 1)]
    LabelValue {
        /// Where the labels are from.
        labels: String,
        /// Row, from 0.
        row: usize,
        /// The label.
        value: usize,
        /// Number of classes.
        classes: usize,
    },
    /// The rows or labels can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What the program holds can't be read.
    #[error("the test rows in this program are damaged: {0}; build it again")]
    Shipped(#[from] ReadNpyError),
    /// The ranges of the inputs can't be a task's.
    #[error("the values of {inputs} do not make a task's input ranges: {source}")]
    Ranges {
        /// Where the inputs are from.
        inputs: String,
        /// What is wrong.
        source: InputError,
    },
    /// No number of fractional bits suits all models.
    #[error("model {file}: {source}")]
    FractionalBits {
        /// The file of the model that fits none.
        file: String,
        /// Why.
        source: QuantiseError,
    },
}

/// One owner.
pub struct Owner {
    /// The owner's name, as in its certificate.
    pub name: String,
    /// Where the model is from, for messages.
    pub file: String,
    /// The model. SECRET, as it would be with a real owner.
    pub network: Network,
}

/// What is demonstrated on.
pub struct Data {
    /// Name of the task.
    pub task: String,
    /// The owners, at least one, of equal classes and features.
    pub owners: Vec<Arc<Owner>>,
    /// Number of classes.
    pub classes: usize,
    /// The queries `[queries, features]`.
    pub inputs: Array2<f64>,
    /// The right class of each query, when known.
    pub labels: Option<Vec<usize>>,
    /// Shape and ranges of an input.
    pub domain: InputDomain,
    /// Whether the ranges were taken from the inputs.
    pub ranges_from_inputs: bool,
}

/// What to load.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Folder of models; the shipped ones without it.
    pub models: Option<PathBuf>,
    /// The inputs; the shipped ones without it.
    pub inputs: Option<Source>,
    /// The labels of the inputs.
    pub labels: Option<Source>,
    /// How many owners; all without it.
    pub owners: Option<usize>,
    /// How many queries.
    pub queries: Option<usize>,
}

impl Data {
    /// Reads models, inputs and labels and checks that they belong together.
    ///
    /// # Errors
    /// [`DataError`] naming the file.
    pub fn load(selection: &Selection) -> Result<Self, DataError> {
        let rows = Rows::load(selection)?;
        let (task, owners) = match &selection.models {
            Some(folder) => (task_name(folder), read_folder(folder, selection.owners)?),
            None => (SHIPPED_TASK.to_owned(), shipped_owners(selection.owners)?),
        };
        let first = &owners[0];
        let classes = first.network.classes();
        for owner in &owners {
            if owner.network.classes() != classes {
                return Err(DataError::Classes {
                    file: owner.file.clone(),
                    found: owner.network.classes(),
                    first_file: first.file.clone(),
                    expected: classes,
                });
            }
            if owner.network.input_features() != rows.inputs.ncols() {
                return Err(DataError::Features {
                    file: owner.file.clone(),
                    shape: owner.network.input_shape().to_vec(),
                    expected: owner.network.input_features(),
                    inputs: rows.inputs_file,
                    found: rows.inputs.ncols(),
                });
            }
        }
        rows.check_labels(classes)?;
        let ranges = if selection.inputs.is_some() { column_ranges(&rows.inputs) } else { unit_range() };
        let domain = InputDomain::new(first.network.input_shape().to_vec(), ranges.0, ranges.1)
            .map_err(|source| DataError::Ranges { inputs: rows.inputs_file.clone(), source })?;
        let queries = rows.queries(selection.queries)?;
        Ok(Data {
            task,
            owners: owners.into_iter().map(Arc::new).collect(),
            classes,
            inputs: rows.inputs.slice(s![..queries, ..]).to_owned(),
            labels: rows.labels.map(|labels| labels[..queries].to_vec()),
            domain,
            ranges_from_inputs: selection.inputs.is_some(),
        })
    }

    /// The most fractional bits that all models allow.
    ///
    /// # Errors
    /// [`DataError::FractionalBits`] naming the file.
    pub fn choose_fractional_bits(&self) -> Result<u32, DataError> {
        let networks = self.owners.iter().map(|owner| &owner.network);
        choose_fractional_bits(Ring::Bits64, networks, &self.domain).map_err(|source| {
            // Shapes were compared, so the error is about one network or about the first.
            let index = match &source {
                QuantiseError::NoFractionalBits { network, .. } => *network,
                _ => 0,
            };
            DataError::FractionalBits { file: self.owners[index].file.clone(), source }
        })
    }

    /// The owners' votes `[owners, queries]` in double precision, without any protection.
    pub fn votes(&self) -> Array2<usize> {
        let mut votes = Array2::zeros((self.owners.len(), self.inputs.nrows()));
        for (owner, mut row) in self.owners.iter().zip(votes.axis_iter_mut(Axis(0))) {
            row.assign(&owner.network.votes(self.inputs.view()));
        }
        votes
    }
}

/// Rows and labels before it is known which models they are for.
struct Rows {
    inputs: Array2<f64>,
    inputs_file: String,
    labels: Option<Vec<usize>>,
    labels_file: String,
}

impl Rows {
    fn load(selection: &Selection) -> Result<Self, DataError> {
        let rows = match &selection.inputs {
            Some(source) => Rows {
                inputs: read_rows(source)?,
                inputs_file: source.to_string(),
                labels: selection.labels.as_ref().map(read_labels).transpose()?,
                labels_file: selection.labels.as_ref().map(Source::to_string).unwrap_or_default(),
            },
            None => {
                // Labels are class indices, which are never negative.
                let labels = Array1::<i64>::read_npy(SHIPPED_LABELS)?.mapv(|label| label as usize);
                Rows {
                    inputs: Array2::<f32>::read_npy(SHIPPED_INPUTS)?.mapv(f64::from),
                    inputs_file: "the shipped test rows".to_owned(),
                    labels: Some(labels.to_vec()),
                    labels_file: "the shipped labels".to_owned(),
                }
            }
        };
        match &rows.labels {
            Some(labels) if labels.len() != rows.inputs.nrows() => Err(DataError::LabelCount {
                labels: rows.labels_file,
                found: labels.len(),
                inputs: rows.inputs_file,
                expected: rows.inputs.nrows(),
            }),
            _ => Ok(rows),
        }
    }

    fn check_labels(&self, classes: usize) -> Result<(), DataError> {
        let labels = self.labels.iter().flatten().enumerate();
        match labels.into_iter().find(|&(_, &label)| label >= classes) {
            Some((row, &value)) => {
                Err(DataError::LabelValue { labels: self.labels_file.clone(), row, value, classes })
            }
            None => Ok(()),
        }
    }

    fn queries(&self, asked: Option<usize>) -> Result<usize, DataError> {
        let available = self.inputs.nrows();
        match asked {
            Some(asked) if asked > available => {
                Err(DataError::Queries { asked, available, file: self.inputs_file.clone() })
            }
            Some(asked) => Ok(asked),
            None => Ok(DEFAULT_QUERIES.min(available)),
        }
    }
}

fn shipped_owners(wanted: Option<usize>) -> Result<Vec<Owner>, DataError> {
    let count = limit(wanted, SHIPPED_MODELS.len())?;
    let mut names = Names::default();
    let read = |(file, bytes): &(&str, &[u8])| {
        let name = names.next(file.trim_end_matches(".onnx"));
        read_model(name, (*file).to_owned(), import(bytes))
    };
    SHIPPED_MODELS[..count].iter().map(read).collect()
}

fn read_folder(folder: &Path, wanted: Option<usize>) -> Result<Vec<Owner>, DataError> {
    let failed = |source| DataError::Folder { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx")) && path.is_file()
        {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(DataError::NoModels { path: folder.to_owned() });
    }
    paths.sort();
    paths.truncate(limit(wanted, paths.len())?);
    let mut names = Names::default();
    let read = |path: &PathBuf| {
        let name = names.next(&path.file_stem().unwrap_or_default().to_string_lossy());
        read_model(name, path.display().to_string(), import_file(path))
    };
    paths.iter().map(read).collect()
}

fn read_model(name: String, file: String, network: Result<Network, ImportError>) -> Result<Owner, DataError> {
    match network {
        Ok(network) => Ok(Owner { name, file, network }),
        Err(source) => Err(DataError::Import { file, source }),
    }
}

fn limit(wanted: Option<usize>, available: usize) -> Result<usize, DataError> {
    match wanted {
        Some(asked) if asked > available => Err(DataError::Owners { asked, available }),
        Some(asked) => Ok(asked),
        None => Ok(available),
    }
}

/// Range of an input whose features all lie between 0 and 1.
fn unit_range() -> (Vec<f64>, Vec<f64>) {
    (vec![0.0], vec![1.0])
}

/// Smallest and largest value of every column; one value when all columns have the same.
fn column_ranges(rows: &Array2<f64>) -> (Vec<f64>, Vec<f64>) {
    let fold = |start: f64, pick: fn(f64, f64) -> f64| -> Vec<f64> {
        rows.axis_iter(Axis(1)).map(|column| column.iter().copied().fold(start, pick)).collect()
    };
    (fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max))
}

/// The name of the task for a folder of models.
fn task_name(folder: &Path) -> String {
    let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    identity_name(&absolute.file_name().unwrap_or_default().to_string_lossy())
        .unwrap_or_else(|| "models".to_owned())
}

/// Text as a name of an identity: lower-case letters and digits, all else a hyphen; `None` if nothing
/// is left.
fn identity_name(text: &str) -> Option<String> {
    let plain = |character: char| match character.to_ascii_lowercase() {
        plain @ ('a'..='z' | '0'..='9') => plain,
        _ => '-',
    };
    let name: String = text.chars().map(plain).take(MAX_NAME_LENGTH).collect();
    let name = name.trim_matches('-').to_owned();
    check_name(&name).is_ok().then_some(name)
}

/// Gives out names of owners, none twice.
#[derive(Default)]
struct Names(HashSet<String>);

impl Names {
    fn next(&mut self, text: &str) -> String {
        let wanted = identity_name(text).unwrap_or_else(|| "owner".to_owned());
        let mut name = wanted.clone();
        for number in 2_u64.. {
            if self.0.insert(name.clone()) {
                break;
            }
            let suffix = format!("-{number}");
            let kept = wanted.len().min(MAX_NAME_LENGTH - suffix.len());
            name = format!("{}{suffix}", &wanted[..kept]);
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_owners_fit_the_shipped_rows() {
        let data = Data::load(&Selection::default()).unwrap();
        assert!(data.owners.len() >= 25, "{}", data.owners.len());
        assert_eq!((data.task.as_str(), data.classes), ("digits", 10));
        assert_eq!(data.inputs.dim(), (DEFAULT_QUERIES, 64));
        assert_eq!(data.labels.as_ref().unwrap().len(), DEFAULT_QUERIES);
        assert_eq!(data.owners[0].name, "owner-00");
        assert!(!data.ranges_from_inputs);
        assert!(data.domain.encode(data.inputs.view(), 16).is_ok());
        assert!(data.choose_fractional_bits().unwrap() >= 10);
    }

    #[test]
    fn numbers_beyond_what_is_there_are_refused() {
        let load = |selection: Selection| Data::load(&selection).err().unwrap().to_string();
        let message = load(Selection { owners: Some(51), ..Selection::default() });
        assert!(message.contains("51 owners") && message.contains("at most 50"), "{message}");
        let message = load(Selection { queries: Some(398), ..Selection::default() });
        assert!(message.contains("398 queries") && message.contains("397 rows"), "{message}");
    }

    #[test]
    fn names_are_identities_and_differ() {
        let mut names = Names::default();
        let long = "x".repeat(3 * MAX_NAME_LENGTH);
        let given: Vec<String> = ["Owner_01", "owner-01", "OWNER 01", "été", "___", "", &long, &long]
            .map(|text| names.next(text))
            .into();
        assert_eq!(given[..4], ["owner-01", "owner-01-2", "owner-01-3", "t"]);
        assert_eq!(given[4..6], ["owner", "owner-2"]);
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len());
        for name in &given {
            check_name(name).unwrap();
        }
        assert_eq!(task_name(Path::new("My Models/MNIST_mlp")), "mnist-mlp");
    }

    #[test]
    fn ranges_are_those_of_the_columns() {
        let rows = ndarray::array![[1.0, -2.0, 5.0], [3.0, -4.0, 5.0]];
        assert_eq!(column_ranges(&rows), (vec![1.0, -4.0, 5.0], vec![3.0, -2.0, 5.0]));
    }
}
