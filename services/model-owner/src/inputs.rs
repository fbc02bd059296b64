//! Rows that an owner gives to `check`, from a file of NumPy's.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use ndarray::{Array1, Array2, ArrayD, ArrayView1};
use ndarray_npy::{ReadNpyError, ReadNpyExt as _};
use thiserror::Error;

/// Most rows that are run.
pub const MAXIMUM_ROWS: usize = 10_000;

/// Why a file holds no inputs of a network.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InputsError {
    /// The file cannot be read.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no array of real numbers.
    #[error(
        "{}: {reason}; write it with numpy.save, as float32 or float64 in C order, of shape [rows, ...]",
        .path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The rows have another shape than the network's input, or there are none or too many.
    #[error(
        "{}: has shape {found:?}, the network takes rows of {features} features, 1 to {MAXIMUM_ROWS} of them",
        .path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its shape.
        found: Vec<usize>,
        /// Features of one row.
        features: usize,
    },
}

/// Reads rows `[rows, features]` for a network of `features` features.
///
/// # Errors
/// [`InputsError`] naming the file and what is wrong with it.
pub fn read_rows(path: &Path, features: usize) -> Result<Array2<f64>, InputsError> {
    let failed = |source| InputsError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    // The header says how long the data is; nothing longer than the file is ever reserved for it.
    let bytes = file.metadata().map_err(failed)?.len();
    let limit = 8 * (MAXIMUM_ROWS * features) as u64 + 4096;
    if bytes > limit {
        let reason = format!("has {bytes} bytes, more than {limit} for {MAXIMUM_ROWS} rows");
        return Err(InputsError::Format { path: path.to_owned(), reason });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    file.take(limit).read_to_end(&mut content).map_err(failed)?;
    let rows = match ArrayD::<f32>::read_npy(&content[..]) {
        Ok(rows) => rows.mapv(f64::from),
        Err(ReadNpyError::WrongDescriptor(_)) => ArrayD::<f64>::read_npy(&content[..])
            .map_err(|error| InputsError::Format { path: path.to_owned(), reason: error.to_string() })?,
        Err(error) => {
            return Err(InputsError::Format { path: path.to_owned(), reason: error.to_string() });
        }
    };
    let found = rows.shape().to_vec();
    let count = found.first().copied().unwrap_or(0);
    let fits = (1..=MAXIMUM_ROWS).contains(&count) && found[1..].iter().product::<usize>() == features;
    let shape = || InputsError::Shape { path: path.to_owned(), found: found.clone(), features };
    if !fits {
        return Err(shape());
    }
    let numbers: Vec<f64> = rows.iter().copied().collect();
    Array2::from_shape_vec((count, features), numbers).map_err(|_| shape())
}

/// Least and most of the features in `rows`: one pair for each column of a table, whose columns have units of their
/// own, and one for all numbers of an image. A column that never changes is taken to reach to zero, or from zero to one.
pub fn ranges(rows: &Array2<f64>, shape: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let extent = |numbers: ArrayView1<'_, f64>| {
        let low = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        let high = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match low == high {
            true if low == 0.0 => (0.0, 1.0),
            true => (low.min(0.0), high.max(0.0)),
            false => (low, high),
        }
    };
    if shape.len() == 1 {
        return rows.columns().into_iter().map(extent).unzip();
    }
    let all = Array1::from_iter(rows.iter().copied());
    let (low, high) = extent(all.view());
    (vec![low], vec![high])
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn columns_of_a_table_have_ranges_of_their_own() {
        let rows = array![[1.0, -3.0, 0.0, 2000.0], [0.5, -3.0, 0.0, 4000.0]];
        let (minimum, maximum) = ranges(&rows, &[4]);
        assert_eq!(minimum, [0.5, -3.0, 0.0, 2000.0]);
        assert_eq!(maximum, [1.0, 0.0, 1.0, 4000.0]);
        assert_eq!(ranges(&rows, &[2, 2]), (vec![-3.0], vec![4000.0]));
    }
}
