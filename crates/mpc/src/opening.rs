//! The client's side of a release: three servers' components, compared and added up.

use concilium_ring::Z64;
use concilium_ring::element::read_elements;
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::party::PartyIndex;
use crate::release::{NO_CONSENSUS, ReleasedComponents};

/// Why an answer can't be put together.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpeningError {
    /// A server sent a component of the wrong length.
    #[error(
        "{server} sent a component of {received} bytes where {expected} were due; the answer was discarded"
    )]
    WrongLength {
        /// The server.
        server: PartyIndex,
        /// Bytes due.
        expected: usize,
        /// Bytes received.
        received: usize,
    },
    /// The two copies of a component differ.
    #[error(
        "{first} and {second} sent different copies of the same component: one of them is faulty, and the answer was discarded"
    )]
    Inconsistent {
        /// One holder of the component.
        first: PartyIndex,
        /// The other holder.
        second: PartyIndex,
    },
    /// An opened label is no class.
    #[error(
        "the opened label of row {row} is not below the {classes} classes; a server is faulty, and the answer was discarded"
    )]
    LabelOutOfRange {
        /// The row of the batch.
        row: usize,
        /// The number of classes of the task.
        classes: usize,
    },
}

/// Checks that the three servers' components have `expected` bytes and that the two copies of each
/// are equal, and returns components 0, 1, 2.
fn compared(parts: &[ReleasedComponents; 3], expected: usize) -> Result<[&[u8]; 3], OpeningError> {
    for (server, part) in PartyIndex::ALL.into_iter().zip(parts) {
        for component in [&part.own, &part.next] {
            if component.len() != expected {
                return Err(OpeningError::WrongLength { server, expected, received: component.len() });
            }
        }
    }
    for second in PartyIndex::ALL {
        let first = second.previous();
        let (copy, own) = (&parts[first.number()].next, &parts[second.number()].own);
        if !bool::from(copy.as_slice().ct_eq(own.as_slice())) {
            return Err(OpeningError::Inconsistent { first, second });
        }
    }
    Ok([&parts[0].own, &parts[1].own, &parts[2].own])
}

/// Adds up the three components of `count` noised sums in Z_2^64, sent by servers 0, 1, 2.
///
/// # Errors
/// [`OpeningError`] when lengths or copies differ.
pub fn open_sums(parts: &[ReleasedComponents; 3], count: usize) -> Result<Vec<i64>, OpeningError> {
    let components = compared(parts, 8 * count)?;
    let mut sums = vec![concilium_ring::Z64::default(); count];
    for component in components {
        let elements: Vec<Z64> = read_elements(component).unwrap_or_default();
        sums.iter_mut().zip(elements).for_each(|(sum, element)| *sum += element);
    }
    Ok(sums.into_iter().map(|sum| sum.0 as i64).collect())
}

/// Joins the three components of `rows` class labels, sent by servers 0, 1, 2.
///
/// # Errors
/// [`OpeningError`] when lengths or copies differ, or a label is not below `classes`.
pub fn open_labels(
    parts: &[ReleasedComponents; 3],
    rows: usize,
    classes: usize,
) -> Result<Vec<usize>, OpeningError> {
    let words = open_words(parts, rows)?;
    words.into_iter().enumerate().map(|(row, word)| label(row, word, classes)).collect()
}

/// Joins the three components of `rows` confident labels, sent by servers 0, 1, 2: `None` for a row
/// without consensus.
///
/// # Errors
/// As [`open_labels`].
pub fn open_confident_labels(
    parts: &[ReleasedComponents; 3],
    rows: usize,
    classes: usize,
) -> Result<Vec<Option<usize>>, OpeningError> {
    let words = open_words(parts, rows)?.into_iter().enumerate();
    words.map(|(row, word)| (word != NO_CONSENSUS).then(|| label(row, word, classes)).transpose()).collect()
}

/// One word of two bytes for each row.
fn open_words(parts: &[ReleasedComponents; 3], rows: usize) -> Result<Vec<u16>, OpeningError> {
    let components = compared(parts, 2 * rows)?;
    let word =
        |component: &[u8], row: usize| u16::from_le_bytes([component[2 * row], component[2 * row + 1]]);
    let joined = |row| components.iter().fold(0, |joined, component| joined ^ word(component, row));
    Ok((0..rows).map(joined).collect())
}

fn label(row: usize, word: u16, classes: usize) -> Result<usize, OpeningError> {
    let label = usize::from(word);
    if label < classes { Ok(label) } else { Err(OpeningError::LabelOutOfRange { row, classes }) }
}
