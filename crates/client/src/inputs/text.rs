//! Comma-separated numbers with an optional header line.

use std::io::Read;

use csv::{ByteRecord, ErrorKind, ReaderBuilder, Trim};

use super::{MAXIMUM_COLUMNS, MAXIMUM_VALUES, Problem, Raw};

/// Longest line, in bytes: the reader holds one line at a time.
const MAXIMUM_LINE_BYTES: usize = 32 * MAXIMUM_COLUMNS;

/// Longest text that an error repeats, in characters.
const LONGEST_TEXT: usize = 40;

/// Reads rows of numbers. A first line with anything but numbers is a header.
pub(super) fn read(reader: impl Read) -> Result<Raw, Problem> {
    // A line is at most a record of the reader; what comes without an end is cut here.
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(Trim::All)
        .from_reader(LineLimit { reader, since_line_end: 0 });
    let mut record = ByteRecord::new();
    let mut values: Vec<f64> = Vec::new();
    let (mut rows, mut columns) = (0, None);
    let mut first = true;
    while reader.read_byte_record(&mut record).map_err(describe)? {
        if std::mem::take(&mut first) && record.iter().any(|field| number(field).is_none()) {
            // A header fixes the number of columns, too.
            columns = Some(record.len());
            continue;
        }
        let expected = *columns.get_or_insert(record.len());
        if record.len() != expected {
            return Err(Problem::Ragged { row: rows, found: record.len(), expected });
        }
        if values.len() + record.len() > MAXIMUM_VALUES {
            return Err(Problem::TooManyValues);
        }
        for (column, field) in record.iter().enumerate() {
            values.push(number(field).ok_or_else(|| Problem::NotANumber {
                row: rows,
                column,
                text: String::from_utf8_lossy(field).chars().take(LONGEST_TEXT).collect(),
            })?);
        }
        rows += 1;
    }
    Ok(Raw { values, rows })
}

fn number(field: &[u8]) -> Option<f64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn describe(error: csv::Error) -> Problem {
    let problem = match error.kind() {
        ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    };
    Problem::Malformed(format!("{problem}; it should be numbers separated by commas"))
}

/// Fails on a line that is too long to be a row, before it fills the memory.
struct LineLimit<R> {
    reader: R,
    since_line_end: usize,
}

impl<R: Read> Read for LineLimit<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        match buffer[..count].iter().rposition(|&byte| byte == b'\n') {
            Some(end) => self.since_line_end = count - end - 1,
            None => self.since_line_end += count,
        }
        if self.since_line_end > MAXIMUM_LINE_BYTES {
            return Err(std::io::Error::other(format!("a line has more than {MAXIMUM_LINE_BYTES} bytes")));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn endless_lines_are_refused() {
        let zeros = std::io::repeat(b'0');
        match read(zeros) {
            Err(Problem::Malformed(problem)) => assert!(problem.contains("a line has more"), "{problem}"),
            _ => panic!("an endless line must be refused"),
        }
    }

    proptest! {
        #[test]
        fn written_numbers_are_read_back(
            (columns, values) in (1_usize..6).prop_flat_map(|columns| {
                let values = proptest::collection::vec(-1e300_f64..1e300, columns..=columns);
                (Just(columns), proptest::collection::vec(values, 1..8))
            }),
            header: bool,
        ) {
            let mut text = if header { vec!["name"; columns].join(",") + "\n" } else { String::new() };
            for row in &values {
                let row: Vec<_> = row.iter().map(f64::to_string).collect();
                text += &(row.join(",") + "\n");
            }
            let raw = read(text.as_bytes()).map_err(|problem| TestCaseError::fail(format!("{problem:?}")))?;
            prop_assert_eq!(raw.rows, values.len());
            prop_assert_eq!(raw.values, values.concat());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(bytes.as_slice());
        }
    }
}
