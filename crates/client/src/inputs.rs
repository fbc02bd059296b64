//! Rows and labels from files: `FILE.npy`, `FILE.npz:member`, numeric `FILE.csv`.
//!
//! Files come from elsewhere. What is allocated is bounded by what a file holds and by
//! [`MAXIMUM_VALUES`], never by what its header announces.

mod npy;
mod text;

use std::{
    fmt,
    fs::File,
    io::{BufReader, Read as _},
    path::{Path, PathBuf},
};

use ndarray::Array2;
use thiserror::Error;
use zip::{ZipArchive, result::ZipError};

/// Most values of one file (64 Mi).
pub const MAXIMUM_VALUES: usize = 1 << 26;

/// Most members of an archive that are looked at.
const MAXIMUM_MEMBERS: usize = 1024;

/// Most values of one row: more than any network takes.
const MAXIMUM_COLUMNS: usize = 1 << 20;

/// Where an array is: a file, and a member when the file is an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    member: Option<String>,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Npy,
    Npz,
    Csv,
}

impl Source {
    /// Reads `FILE.npy`, `FILE.npz:member` or `FILE.csv`. The member may be left out of an archive that
    /// has only one.
    ///
    /// # Errors
    /// [`ReadError::Format`] for other endings.
    pub fn parse(text: &str) -> Result<Self, ReadError> {
        let (path, member) = match text.rfind(".npz:") {
            Some(position) => {
                let (path, member) = text.split_at(position + ".npz".len());
                (path, Some(member[1..].to_owned()).filter(|member| !member.is_empty()))
            }
            None => (text, None),
        };
        let ending = Path::new(path).extension().map(|ending| ending.to_string_lossy().to_lowercase());
        let format = match ending.as_deref() {
            Some("npy") => Format::Npy,
            Some("npz") => Format::Npz,
            Some("csv") => Format::Csv,
            _ => return Err(ReadError::Format { file: text.to_owned() }),
        };
        Ok(Self { path: PathBuf::from(path), member, format })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.path.display())?;
        self.member.as_ref().map_or(Ok(()), |member| write!(formatter, ":{member}"))
    }
}

/// Why a file cannot be read as rows or labels. Rows and columns are counted from 0, a header line
/// not among them.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The ending is unknown.
    #[error("`{file}` is neither FILE.npy, FILE.npz:member nor FILE.csv; convert it to one of these")]
    Format {
        /// The file.
        file: String,
    },
    /// The file cannot be read.
    #[error("cannot read `{file}`: {source}")]
    File {
        /// The file.
        file: String,
        /// The reason that the system gives.
        source: std::io::Error,
    },
    /// The archive cannot be read.
    #[error("`{file}` is not a readable .npz archive: {source}; write it again with numpy.savez")]
    Archive {
        /// The file.
        file: String,
        /// What the reader says.
        source: ZipError,
    },
    /// The archive has no such member, or the member is not named.
    #[error("`{file}` has the members {members}; name one as FILE.npz:member")]
    Member {
        /// The file and the member asked for.
        file: String,
        /// The members, separated by commas.
        members: String,
    },
    /// The bytes are not what the format says.
    #[error("`{file}` is not readable: {problem}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong, with the remedy.
        problem: String,
    },
    /// There are more values than are taken.
    #[error("`{file}` has more than {limit} {what}; split it into smaller files")]
    TooLarge {
        /// The file.
        file: String,
        /// `values` or `values in a row`.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// There are no values.
    #[error("`{file}` is empty; it needs at least one row with one value")]
    Empty {
        /// The file.
        file: String,
    },
    /// A value is NaN or infinite.
    #[error("`{file}` row {row} column {column} is {value}; replace missing values by numbers")]
    NotFinite {
        /// The file.
        file: String,
        /// Row, from 0.
        row: usize,
        /// Position in the flattened row, from 0.
        column: usize,
        /// The value.
        value: f64,
    },
    /// A text is not a number.
    #[error("`{file}` row {row} column {column}: {text:?} is not a number")]
    NotANumber {
        /// The file.
        file: String,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
        /// The text, shortened.
        text: String,
    },
    /// A row has another number of values than the first one.
    #[error("`{file}` row {row} has {found} values where the rows before have {expected}")]
    Ragged {
        /// The file.
        file: String,
        /// Row, from 0.
        row: usize,
        /// Its number of values.
        found: usize,
        /// The first row's number of values.
        expected: usize,
    },
    /// Labels are not one number for each row.
    #[error("`{file}` has {columns} values in each row; labels are one class index for each row")]
    LabelShape {
        /// The file.
        file: String,
        /// Values in a row.
        columns: usize,
    },
    /// A label is not the index of a class.
    #[error("`{file}` row {row}: the label {value} is not a class index; use 0, 1, 2, ...")]
    Label {
        /// The file.
        file: String,
        /// Row, from 0.
        row: usize,
        /// The value.
        value: f64,
    },
}

/// An array as a format gives it: the leading axis and everything else.
pub(crate) struct Raw {
    /// Rows, row-major.
    pub(crate) values: Vec<f64>,
    /// Length of the leading axis.
    pub(crate) rows: usize,
}

/// What a format finds wrong, before it is known which file it is.
#[derive(Debug)]
pub(crate) enum Problem {
    Malformed(String),
    TooManyValues,
    NotANumber { row: usize, column: usize, text: String },
    Ragged { row: usize, found: usize, expected: usize },
}

impl Problem {
    fn of(self, source: &Source) -> ReadError {
        let file = source.to_string();
        match self {
            Self::Malformed(problem) => ReadError::Malformed { file, problem },
            Self::TooManyValues => ReadError::TooLarge { file, what: "values", limit: MAXIMUM_VALUES },
            Self::NotANumber { row, column, text } => ReadError::NotANumber { file, row, column, text },
            Self::Ragged { row, found, expected } => ReadError::Ragged { file, row, found, expected },
        }
    }
}

/// Reads rows `[rows, features]`: the leading axis counts the rows, all other axes are flattened in
/// row-major order. Numbers of any type become double precision.
///
/// # Errors
/// [`ReadError`] names the file and, for a single value, its row and column.
pub fn read_rows(source: &Source) -> Result<Array2<f64>, ReadError> {
    let file = || source.to_string();
    let raw = match source.format {
        Format::Npy => npy::read(BufReader::new(open(source)?)).map_err(|problem| problem.of(source))?,
        Format::Csv => text::read(BufReader::new(open(source)?)).map_err(|problem| problem.of(source))?,
        Format::Npz => read_member(source)?,
    };
    if raw.rows == 0 || raw.values.is_empty() {
        return Err(ReadError::Empty { file: file() });
    }
    let columns = raw.values.len() / raw.rows;
    if columns > MAXIMUM_COLUMNS {
        return Err(ReadError::TooLarge { file: file(), what: "values in a row", limit: MAXIMUM_COLUMNS });
    }
    if let Some(position) = raw.values.iter().position(|value| !value.is_finite()) {
        return Err(ReadError::NotFinite {
            file: file(),
            row: position / columns,
            column: position % columns,
            value: raw.values[position],
        });
    }
    Ok(Array2::from_shape_vec((raw.rows, columns), raw.values)
        .expect("readers give as many values for every row"))
}

/// Reads labels: one class index for each row.
///
/// # Errors
/// As [`read_rows`], [`ReadError::LabelShape`] and [`ReadError::Label`].
pub fn read_labels(source: &Source) -> Result<Vec<usize>, ReadError> {
    let rows = read_rows(source)?;
    if rows.ncols() != 1 {
        return Err(ReadError::LabelShape { file: source.to_string(), columns: rows.ncols() });
    }
    // Class indices are small: anything beyond is a wrong file, and all these are exact in f64.
    let index = |(row, &value): (usize, &f64)| {
        if value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value) {
            Ok(value as usize)
        } else {
            Err(ReadError::Label { file: source.to_string(), row, value })
        }
    };
    rows.iter().enumerate().map(index).collect()
}

fn open(source: &Source) -> Result<File, ReadError> {
    File::open(&source.path)
        .map_err(|error| ReadError::File { file: source.path.display().to_string(), source: error })
}

fn read_member(source: &Source) -> Result<Raw, ReadError> {
    let failed = |error| ReadError::Archive { file: source.path.display().to_string(), source: error };
    let mut archive = ZipArchive::new(BufReader::new(open(source)?)).map_err(failed)?;
    let names: Vec<String> = archive
        .file_names()
        .take(MAXIMUM_MEMBERS)
        .map(|name| name.trim_end_matches(".npy").to_owned())
        .collect();
    let unnamed = || ReadError::Member { file: source.to_string(), members: names.join(", ") };
    let name = match (&source.member, names.as_slice()) {
        (Some(member), _) if names.contains(member) => member,
        (None, [only]) => only,
        _ => return Err(unnamed()),
    };
    // numpy appends the ending, other writers may not.
    let index = archive
        .index_for_name(&format!("{name}.npy"))
        .or_else(|| archive.index_for_name(name))
        .ok_or_else(unnamed)?;
    let member = archive.by_index(index).map_err(failed)?;
    // A few kilobytes can unpack to terabytes. More than this cannot be used anyway.
    let unpacked = member.take(npy::MAXIMUM_BYTES + 1);
    npy::read(unpacked).map_err(|problem| problem.of(source))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ndarray::{Array, Array1, Array3, ShapeBuilder as _, array};
    use ndarray_npy::{NpzWriter, WritableElement, write_npy};
    use tempfile::TempDir;

    use super::*;

    fn folder() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    fn source(folder: &TempDir, name: &str) -> Source {
        Source::parse(folder.path().join(name).to_str().unwrap()).unwrap()
    }

    fn refusal(folder: &TempDir, name: &str) -> String {
        let error = read_rows(&source(folder, name)).expect_err("the file must be refused").to_string();
        assert!(error.contains(name.split(':').next().unwrap()), "{error}");
        error
    }

    fn numbers_are_read<T: WritableElement + Copy>(numbers: [T; 4], expected: [f64; 4]) {
        let folder = folder();
        let flat = Array1::from_vec(numbers.to_vec());
        write_npy(folder.path().join("x.npy"), &flat.into_shape_with_order((2, 2)).unwrap()).unwrap();
        let rows = read_rows(&source(&folder, "x.npy")).unwrap();
        assert_eq!(rows, Array2::from_shape_vec((2, 2), expected.to_vec()).unwrap());
    }

    #[test]
    fn every_type_of_number_is_read() {
        numbers_are_read([0.5_f32, -1.0, 2.25, 3e30], [0.5, -1.0, 2.25, f64::from(3e30_f32)]);
        numbers_are_read([0.1_f64, -1e300, 2.25, 3.0], [0.1, -1e300, 2.25, 3.0]);
        numbers_are_read([0_u8, 1, 254, 255], [0.0, 1.0, 254.0, 255.0]);
        numbers_are_read([0_i8, 1, -128, 127], [0.0, 1.0, -128.0, 127.0]);
        numbers_are_read([0_u16, 1, 2, 65_535], [0.0, 1.0, 2.0, 65_535.0]);
        numbers_are_read([0_i16, 1, 2, -32_768], [0.0, 1.0, 2.0, -32_768.0]);
        numbers_are_read([0_u32, 1, 2, u32::MAX], [0.0, 1.0, 2.0, f64::from(u32::MAX)]);
        numbers_are_read([0_i32, 1, 2, i32::MIN], [0.0, 1.0, 2.0, f64::from(i32::MIN)]);
        numbers_are_read([0_u64, 1, 2, 1 << 40], [0.0, 1.0, 2.0, 2_f64.powi(40)]);
        numbers_are_read([0_i64, 1, 2, -(1 << 40)], [0.0, 1.0, 2.0, -2_f64.powi(40)]);
        numbers_are_read([false, true, true, false], [0.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn axes_after_the_first_are_flattened_in_either_order() {
        let folder = folder();
        let cube = Array3::from_shape_fn((2, 2, 3), |(a, b, c)| (100 * a + 10 * b + c) as f64);
        write_npy(folder.path().join("c.npy"), &cube).unwrap();
        let mut fortran = Array::zeros((2, 2, 3).f());
        fortran.assign(&cube);
        write_npy(folder.path().join("f.npy"), &fortran).unwrap();
        let expected = array![[0.0, 1.0, 2.0, 10.0, 11.0, 12.0], [100.0, 101.0, 102.0, 110.0, 111.0, 112.0]];
        assert_eq!(read_rows(&source(&folder, "c.npy")).unwrap(), expected);
        assert_eq!(read_rows(&source(&folder, "f.npy")).unwrap(), expected);
    }

    #[test]
    fn members_of_archives_are_read_by_name() {
        let folder = folder();
        for compressed in [false, true] {
            let name = format!("x{compressed}.npz");
            let file = fs::File::create(folder.path().join(&name)).unwrap();
            let mut writer = if compressed { NpzWriter::new_compressed(file) } else { NpzWriter::new(file) };
            writer.add_array("inputs", &array![[1.0_f32, 2.0]]).unwrap();
            writer.add_array("labels", &array![7_i64]).unwrap();
            writer.finish().unwrap();
            let member = |member: &str| source(&folder, &format!("{name}:{member}"));
            assert_eq!(read_rows(&member("inputs")).unwrap(), array![[1.0, 2.0]]);
            assert_eq!(read_labels(&member("labels")).unwrap(), [7]);
            for wrong in ["", "other"] {
                let message = read_rows(&member(wrong)).unwrap_err().to_string();
                assert!(message.contains("inputs") && message.contains("labels"), "{message}");
            }
        }
        fs::write(folder.path().join("bad.npz"), b"PK\x03\x04 and so on").unwrap();
        refusal(&folder, "bad.npz:x");
    }

    #[test]
    fn an_archive_of_one_member_needs_no_name() {
        let folder = folder();
        let mut writer = NpzWriter::new(fs::File::create(folder.path().join("x.npz")).unwrap());
        writer.add_array("only", &array![[1_u8], [2]]).unwrap();
        writer.finish().unwrap();
        assert_eq!(read_rows(&source(&folder, "x.npz")).unwrap(), array![[1.0], [2.0]]);
    }

    #[test]
    fn csv_is_read_with_and_without_header() {
        let folder = folder();
        for (text, rows) in [
            ("1,2.5\n-3, 4e1\n", array![[1.0, 2.5], [-3.0, 40.0]]),
            ("a,b\n1,2.5\n-3,4e1", array![[1.0, 2.5], [-3.0, 40.0]]),
            ("\"x, y\",b\r\n1,2\r\n", array![[1.0, 2.0]]),
            ("5\n", array![[5.0]]),
        ] {
            fs::write(folder.path().join("x.csv"), text).unwrap();
            assert_eq!(read_rows(&source(&folder, "x.csv")).unwrap(), rows, "{text:?}");
        }
    }

    #[test]
    fn malformed_csv_is_refused_with_the_place() {
        let folder = folder();
        for (text, needle) in [
            ("", "empty"),
            ("a,b\n", "empty"),
            ("1,2\n3\n", "row 1 has 1 values"),
            ("1,2\n3,x\n", "row 1 column 1: \"x\" is not a number"),
            ("a,b\n1,2\n3,\n", "row 1 column 1: \"\" is not a number"),
            ("1,2\n3,nan\n", "row 1 column 1 is NaN"),
            ("a,b\n1,inf\n", "row 0 column 1 is inf"),
            ("1,2\n3,1e999\n", "row 1 column 1 is inf"),
        ] {
            fs::write(folder.path().join("x.csv"), text).unwrap();
            let message = refusal(&folder, "x.csv");
            assert!(message.contains(needle), "{text:?}: {message}");
        }
        fs::write(folder.path().join("x.csv"), b"1,2\n\xff\xfe,3\n").unwrap();
        refusal(&folder, "x.csv");
    }

    #[test]
    fn broken_numbers_are_named_by_row_and_column() {
        let folder = folder();
        write_npy(folder.path().join("x.npy"), &array![[1.0, 2.0], [3.0, f64::NAN]]).unwrap();
        assert!(refusal(&folder, "x.npy").contains("row 1 column 1 is NaN"));
        write_npy(folder.path().join("x.npy"), &array![[f32::NEG_INFINITY]]).unwrap();
        assert!(refusal(&folder, "x.npy").contains("row 0 column 0 is -inf"));
        write_npy(folder.path().join("x.npy"), &Array2::<f32>::zeros((0, 4))).unwrap();
        assert!(refusal(&folder, "x.npy").contains("empty"));
    }

    #[test]
    fn labels_are_class_indices() {
        let folder = folder();
        write_npy(folder.path().join("y.npy"), &array![0_u8, 9, 3]).unwrap();
        assert_eq!(read_labels(&source(&folder, "y.npy")).unwrap(), [0, 9, 3]);
        fs::write(folder.path().join("y.csv"), "label\n2\n1\n").unwrap();
        assert_eq!(read_labels(&source(&folder, "y.csv")).unwrap(), [2, 1]);
        for (labels, needle) in
            [(array![[0.0, 1.0]], "2 values"), (array![[0.5]], "0.5"), (array![[-1.0]], "-1")]
        {
            write_npy(folder.path().join("y.npy"), &labels).unwrap();
            let message = read_labels(&source(&folder, "y.npy")).unwrap_err().to_string();
            assert!(message.contains(needle), "{message}");
        }
    }

    #[test]
    fn other_endings_are_refused() {
        for text in ["x.txt", "x", "", "x.npy:a", "x.csv.gz"] {
            assert!(matches!(Source::parse(text), Err(ReadError::Format { .. })), "{text}");
        }
        let odd = Source::parse("a.npz:b.npz:c").unwrap();
        assert_eq!(odd.to_string(), "a.npz:b.npz:c");
        assert_eq!(odd.member.as_deref(), Some("c"));
    }
}
