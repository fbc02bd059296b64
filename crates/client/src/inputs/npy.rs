//! The NPY format of NumPy, versions 1 to 3, for arrays of numbers.
//!
//! `ndarray-npy` reads it too, but needs the type of the numbers at compile time and allocates what
//! the header announces before it reads.

use std::io::Read;

use ndarray::{ArrayD, IxDyn, ShapeBuilder as _};

use super::{MAXIMUM_VALUES, Problem, Raw};

/// Largest header, in bytes; NumPy's own limit is lower.
const MAXIMUM_HEADER_BYTES: usize = 1 << 16;

/// Largest file that can be of use, in bytes: the values at 8 bytes each, and a header.
pub(super) const MAXIMUM_BYTES: u64 = 8 * MAXIMUM_VALUES as u64 + MAXIMUM_HEADER_BYTES as u64 + 12;

/// Most axes of an array; NumPy's own limit.
const MAXIMUM_AXES: usize = 64;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

fn malformed(problem: impl Into<String>) -> Problem {
    Problem::Malformed(format!("{}; write it again with numpy.save", problem.into()))
}

/// Reads an array of numbers.
pub(super) fn read(mut reader: impl Read) -> Result<Raw, Problem> {
    let header = read_header(&mut reader)?;
    let rows = *header.shape.first().ok_or_else(|| malformed("it is a single number without axes"))?;
    let count = header
        .shape
        .iter()
        .try_fold(1_usize, |product, &length| product.checked_mul(length))
        .filter(|&count| count <= MAXIMUM_VALUES)
        .ok_or(Problem::TooManyValues)?;
    let bytes = count * header.number.bytes();
    let mut data = Vec::new();
    // `take` and a vector that grows: what is allocated follows what arrives.
    reader
        .take(bytes as u64)
        .read_to_end(&mut data)
        .map_err(|error| malformed(format!("its data cannot be read ({error})")))?;
    if data.len() != bytes {
        return Err(malformed(format!("it ends after {} of {bytes} bytes of data", data.len())));
    }
    let values = header.number.decode(&data);
    let values = if header.column_major && header.shape.len() > 1 {
        ArrayD::from_shape_vec(IxDyn(&header.shape).f(), values)
            .map_err(|error| malformed(format!("its shape {:?} is not possible ({error})", header.shape)))?
            .iter()
            .copied()
            .collect()
    } else {
        values
    };
    Ok(Raw { values, rows })
}

/// What the header announces.
#[derive(Debug, PartialEq)]
struct Header {
    number: Number,
    column_major: bool,
    shape: Vec<usize>,
}

fn read_header(reader: &mut impl Read) -> Result<Header, Problem> {
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(|_| malformed("it is not an NPY file"))?;
    if &start[..6] != MAGIC {
        return Err(malformed("it is not an NPY file"));
    }
    let length = match start[6] {
        1 => {
            let mut length = [0; 2];
            reader.read_exact(&mut length).map_err(|_| malformed("its header is cut off"))?;
            usize::from(u16::from_le_bytes(length))
        }
        2 | 3 => {
            let mut length = [0; 4];
            reader.read_exact(&mut length).map_err(|_| malformed("its header is cut off"))?;
            u32::from_le_bytes(length) as usize
        }
        version => return Err(malformed(format!("its format version is {version}, not 1, 2 or 3"))),
    };
    if length > MAXIMUM_HEADER_BYTES {
        return Err(malformed(format!(
            "its header has {length} bytes, above the limit of {MAXIMUM_HEADER_BYTES}"
        )));
    }
    let mut header = vec![0; length];
    reader.read_exact(&mut header).map_err(|_| malformed("its header is cut off"))?;
    parse_header(&String::from_utf8_lossy(&header))
}

/// Reads the Python dictionary `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse_header(text: &str) -> Result<Header, Problem> {
    let mut number = None;
    let mut column_major = None;
    let mut shape = None;
    let mut rest =
        text.trim().strip_prefix('{').ok_or_else(|| malformed("its header is not a dictionary"))?;
    loop {
        rest = rest.trim_start();
        if rest.starts_with('}') {
            break;
        }
        let (key, after) = quoted(rest).ok_or_else(|| malformed("its header is not a dictionary"))?;
        let value = after
            .trim_start()
            .strip_prefix(':')
            .ok_or_else(|| malformed("its header is not a dictionary"))?
            .trim_start();
        rest = match key {
            "descr" => {
                let (description, after) =
                    quoted(value).ok_or_else(|| malformed("it holds records, not numbers"))?;
                number = Some(Number::parse(description)?);
                after
            }
            "fortran_order" => {
                let (order, after) = match (value.strip_prefix("True"), value.strip_prefix("False")) {
                    (Some(after), _) => (true, after),
                    (_, Some(after)) => (false, after),
                    _ => return Err(malformed("its `fortran_order` is neither True nor False")),
                };
                column_major = Some(order);
                after
            }
            "shape" => {
                let (list, after) = value
                    .strip_prefix('(')
                    .and_then(|value| value.split_once(')'))
                    .ok_or_else(|| malformed("its shape is not a tuple"))?;
                shape = Some(parse_shape(list)?);
                after
            }
            _ => return Err(malformed("its header has unknown keys")),
        };
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    match (number, column_major, shape) {
        (Some(number), Some(column_major), Some(shape)) => Ok(Header { number, column_major, shape }),
        _ => Err(malformed("its header lacks `descr`, `fortran_order` or `shape`")),
    }
}

/// A text in quotes, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn parse_shape(list: &str) -> Result<Vec<usize>, Problem> {
    let mut shape = Vec::new();
    for length in list.split(',').map(str::trim).filter(|length| !length.is_empty()) {
        if shape.len() == MAXIMUM_AXES {
            return Err(malformed(format!("it has more than {MAXIMUM_AXES} axes")));
        }
        // Python 2 wrote long integers with an L.
        let length = length.trim_end_matches('L').parse();
        shape.push(length.map_err(|_| malformed("its shape is not a list of lengths"))?);
    }
    Ok(shape)
}

/// A type of number and its byte order.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Number {
    kind: Kind,
    big_endian: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
}

impl Number {
    /// Reads a description such as `<f4`.
    fn parse(description: &str) -> Result<Self, Problem> {
        let unsupported = || {
            let shown: String = description.chars().take(20).collect();
            Problem::Malformed(format!(
                "it holds `{shown}`, not numbers of 8 to 64 bits; convert it with .astype('float32')"
            ))
        };
        let mut characters = description.chars();
        let big_endian = match characters.next() {
            Some('<' | '|' | '=') => false,
            Some('>') => true,
            _ => return Err(unsupported()),
        };
        let kind = match characters.as_str() {
            "f4" => Kind::F32,
            "f8" => Kind::F64,
            "i1" => Kind::I8,
            "i2" => Kind::I16,
            "i4" => Kind::I32,
            "i8" => Kind::I64,
            // A truth value is a byte of 0 or 1.
            "u1" | "b1" => Kind::U8,
            "u2" => Kind::U16,
            "u4" => Kind::U32,
            "u8" => Kind::U64,
            _ => return Err(unsupported()),
        };
        Ok(Self { kind, big_endian })
    }

    fn bytes(self) -> usize {
        match self.kind {
            Kind::I8 | Kind::U8 => 1,
            Kind::I16 | Kind::U16 => 2,
            Kind::F32 | Kind::I32 | Kind::U32 => 4,
            Kind::F64 | Kind::I64 | Kind::U64 => 8,
        }
    }

    fn decode(self, data: &[u8]) -> Vec<f64> {
        macro_rules! numbers {
            ($type:ty) => {
                data.chunks_exact(size_of::<$type>())
                    .map(|bytes| {
                        let bytes = bytes.try_into().expect("chunks are as long as the type");
                        let number = if self.big_endian {
                            <$type>::from_be_bytes(bytes)
                        } else {
                            <$type>::from_le_bytes(bytes)
                        };
                        number as f64
                    })
                    .collect()
            };
        }
        match self.kind {
            Kind::F32 => numbers!(f32),
            Kind::F64 => numbers!(f64),
            Kind::I8 => numbers!(i8),
            Kind::I16 => numbers!(i16),
            Kind::I32 => numbers!(i32),
            Kind::I64 => numbers!(i64),
            Kind::U8 => numbers!(u8),
            Kind::U16 => numbers!(u16),
            Kind::U32 => numbers!(u32),
            Kind::U64 => numbers!(u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend([version, 0]);
        if version == 1 {
            file.extend((header.len() as u16).to_le_bytes());
        } else {
            file.extend((header.len() as u32).to_le_bytes());
        }
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    fn refusal(bytes: &[u8]) -> String {
        match read(bytes) {
            Ok(_) => panic!("the file must be refused"),
            Err(Problem::Malformed(problem)) => problem,
            Err(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn headers_of_all_versions_are_read() {
        let header = "{'descr': '>i2', 'fortran_order': False, 'shape': (2,), }   \n";
        for version in [1, 2, 3] {
            let raw = read(file(version, header, &[0, 1, 255, 255]).as_slice()).unwrap();
            assert_eq!((raw.values, raw.rows), (vec![1.0, -1.0], 2));
        }
        let other = r#"{"shape":(2L, 1), "descr" : "|b1" , "fortran_order":True}"#;
        let raw = read(file(1, other, &[0, 1]).as_slice()).unwrap();
        assert_eq!((raw.values, raw.rows), (vec![0.0, 1.0], 2));
    }

    #[test]
    fn announced_sizes_allocate_nothing() {
        let announced = |shape: &str| {
            file(1, &format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}"), &[0; 16])
        };
        assert!(refusal(&announced("(60000000,)")).contains("ends after 16 of 480000000 bytes"));
        assert!(refusal(&announced("(9223372036854775807, 4)")).contains("TooManyValues"));
        assert!(refusal(&announced("(99999999999999999999,)")).contains("shape"));
        let mut long = MAGIC.to_vec();
        long.extend([2, 0, 255, 255, 255, 255]);
        assert!(refusal(&long).contains("header"));
    }

    #[test]
    fn what_is_not_numbers_is_refused() {
        let described = |descr: &str| {
            refusal(&file(
                1,
                &format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,)}}"),
                &[0; 64],
            ))
        };
        for descr in ["'|O'", "'<U3'", "'<c8'", "'<f2'", "'f4'", "'<M8[ns]'", "''"] {
            assert!(described(descr).contains("astype"), "{descr}");
        }
        assert!(described("[('a', '<f4')]").contains("records"));
        for (header, needle) in [
            ("", "dictionary"),
            ("{", "dictionary"),
            ("{}", "lacks"),
            ("{'descr' '<f4'}", "dictionary"),
            ("{'descr': '<f4', 'fortran_order': 1}", "fortran_order"),
            ("{'shape': 3}", "tuple"),
            ("{'shape': (3", "tuple"),
            ("{'shape': (-3,)}", "lengths"),
            ("{'other': 3}", "unknown keys"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", "single number"),
        ] {
            let message = refusal(&file(1, header, &[0; 8]));
            assert!(message.contains(needle), "{header:?}: {message}");
        }
        for bytes in [&b""[..], b"\x93NUMPY", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00\x00\x00", &[0; 1000]]
        {
            assert!(refusal(bytes).contains("numpy.save"));
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), header in "\\PC{0,80}") {
            let _ = read(bytes.as_slice());
            let _ = read(file(1, &header, &bytes).as_slice());
            let _ = read(file(1, &format!("{{'descr': '{header}"), &bytes).as_slice());
        }
    }
}
