//! Which rows of which file are predicted, and what their true labels are.

use std::ops::Range;

use concilium_client_library::{
    Task,
    inputs::{Source, read_labels, read_rows},
    terminal::{Failure, FailureClass},
};
use ndarray::{Array2, s};

/// A range of rows as the user writes it: `A..B`, `A..` or `..B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRange {
    start: usize,
    end: Option<usize>,
}

impl RowRange {
    /// Reads `A..B`, `A..` or `..B`.
    ///
    /// # Errors
    /// A message for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a range of rows; write 0..10, 5.. or ..3");
        let (start, end) = text.split_once("..").ok_or_else(wrong)?;
        let number = |text: &str| match text {
            "" => Ok(None),
            digits => digits.parse().map(Some).map_err(|_| wrong()),
        };
        let (start, end) = (number(start)?.unwrap_or(0), number(end)?);
        if end.is_some_and(|end: usize| end <= start) {
            return Err(format!("{text:?} holds no row; the end must lie above the start"));
        }
        Ok(Self { start, end })
    }

    /// The rows of a file that has `rows` of them.
    ///
    /// # Errors
    /// [`Failure`] if the file has too few.
    fn within(self, rows: usize) -> Result<Range<usize>, Failure> {
        let end = self.end.unwrap_or(rows);
        if self.start < end && end <= rows {
            return Ok(self.start..end);
        }
        let end = self.end.map(|end| end.to_string()).unwrap_or_default();
        Err(refused(format!("--rows {}..{end} reaches beyond the {rows} rows of the input", self.start)))
    }
}

fn refused(message: String) -> Failure {
    Failure::message(FailureClass::Input, message)
}

/// The rows to predict.
#[derive(Debug)]
pub struct Selection {
    /// Position of the first row in the file.
    pub first: usize,
    /// The rows, `[rows, features]`.
    pub rows: Array2<f64>,
    /// The true label of each of these rows, if the user gave them.
    pub labels: Option<Vec<usize>>,
}

/// Reads the rows of `input` and their labels, as far as `rows` selects them.
///
/// # Errors
/// [`Failure`] of the class input.
pub fn read(input: &Source, labels: Option<&Source>, rows: Option<&RowRange>) -> Result<Selection, Failure> {
    let all = read_rows(input)?;
    let range = rows.copied().unwrap_or(RowRange { start: 0, end: None }).within(all.nrows())?;
    let labels = match labels {
        Some(source) => {
            let labels = read_labels(source)?;
            if labels.len() != all.nrows() {
                return Err(refused(format!(
                    "`{source}` has {} labels for the {} rows of `{input}`; give one for each row",
                    labels.len(),
                    all.nrows()
                )));
            }
            Some(labels[range.clone()].to_vec())
        }
        None => None,
    };
    Ok(Selection { first: range.start, rows: all.slice(s![range, ..]).to_owned(), labels })
}

impl Selection {
    /// Refuses labels that are no class of the task.
    ///
    /// # Errors
    /// [`Failure`] naming row and label.
    pub fn check_labels(&self, task: &Task) -> Result<(), Failure> {
        let labels = self.labels.iter().flatten().enumerate();
        match labels.into_iter().find(|(_, label)| **label >= task.classes) {
            Some((row, label)) => Err(refused(format!(
                "the label of row {} is {label}, but task `{}` has the classes 0 to {}",
                self.first + row,
                task.name,
                task.classes - 1
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn ranges_are_read() {
        let range = |text| RowRange::parse(text).unwrap().within(10);
        assert_eq!(range("2..5").unwrap(), 2..5);
        assert_eq!(range("2..").unwrap(), 2..10);
        assert_eq!(range("..3").unwrap(), 0..3);
        assert_eq!(range("..").unwrap(), 0..10);
        for beyond in ["2..11", "10..", "99..100"] {
            let failure = range(beyond).unwrap_err();
            assert!(failure.to_string().contains("10 rows"), "{failure}");
        }
        for wrong in ["", "5", "a..b", "-1..3", "3..3", "4..2", "1..2..3"] {
            assert!(RowRange::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rows_and_labels_are_selected_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("x.csv"), "1,2\n3,4\n5,6\n").unwrap();
        fs::write(path("y.csv"), "0\n1\n2\n").unwrap();
        fs::write(path("short.csv"), "0\n1\n").unwrap();
        let [input, labels, short] =
            ["x.csv", "y.csv", "short.csv"].map(|name| Source::parse(&path(name)).unwrap());
        let range = RowRange::parse("1..").unwrap();
        let selection = read(&input, Some(&labels), Some(&range)).unwrap();
        assert_eq!((selection.first, selection.labels.as_deref()), (1, Some(&[1, 2][..])));
        assert_eq!(selection.rows, ndarray::array![[3.0, 4.0], [5.0, 6.0]]);
        let failure = read(&input, Some(&short), None).unwrap_err();
        assert_eq!(failure.class(), FailureClass::Input);
        assert!(failure.to_string().contains("2 labels for the 3 rows"), "{failure}");
    }
}
