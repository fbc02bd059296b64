//! A look at the raw protobuf before it is decoded, so that no small file makes decoding reserve much
//! memory.
//!
//! An empty repeated message takes two bytes on the wire and a hundred or more in memory, and a packed
//! varint one byte and eight. This scan counts both without reserving anything for them.

use super::{ImportError, MAXIMUM_NODES};

/// Most submessages and repeated strings in a file.
const MAXIMUM_ENTRIES: usize = 1 << 18;

/// Most integers kept as varints in a file. Weights are kept otherwise; these are shapes and axes.
const MAXIMUM_VARINTS: usize = 1 << 24;

/// The messages that import decodes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    /// A message without repeated fields.
    Leaf,
}

/// What a length-delimited field holds, as far as it matters to memory.
enum Content {
    Message(Message),
    RepeatedString,
    Varints,
    Other,
}

impl Message {
    fn content(self, field: u64) -> Content {
        match (self, field) {
            (Self::Model, 7) => Content::Message(Self::Graph),
            (Self::Model, 8) => Content::Message(Self::Leaf),
            (Self::Graph, 1) => Content::Message(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5) => Content::Message(Self::Tensor),
            (Self::Graph, 11 | 12) => Content::Message(Self::ValueInfo),
            (Self::Node, 1 | 2) => Content::RepeatedString,
            (Self::Node, 5) => Content::Message(Self::Attribute),
            (Self::Attribute, 8) | (Self::Tensor, 1 | 5 | 7 | 11) => Content::Varints,
            (Self::Tensor, 13) => Content::Message(Self::Leaf),
            (Self::ValueInfo, 2) => Content::Message(Self::Type),
            (Self::Type, 1) => Content::Message(Self::TensorType),
            (Self::TensorType, 2) => Content::Message(Self::Shape),
            (Self::Shape, 1) => Content::Message(Self::Leaf),
            _ => Content::Other,
        }
    }
}

/// Checks the framing of `bytes` and counts what decoding will reserve memory for.
///
/// # Errors
/// [`ImportError::Malformed`] when a field reaches beyond its message, and [`ImportError::TooMany`].
pub(super) fn scan(bytes: &[u8]) -> Result<(), ImportError> {
    let mut entries = 0_usize;
    let mut varints = 0_usize;
    let mut nodes = 0_usize;
    // A work list instead of recursion; it never holds more than MAXIMUM_ENTRIES messages.
    let mut pending = vec![(Message::Model, Reader { rest: bytes, length: bytes.len() })];
    while let Some((message, mut reader)) = pending.pop() {
        while !reader.rest.is_empty() {
            let key = reader.varint()?;
            let (field, wire_type) = (key >> 3, key & 7);
            match wire_type {
                0 => {
                    reader.varint()?;
                    varints += usize::from(matches!(message.content(field), Content::Varints));
                }
                1 => drop(reader.take(8)?),
                5 => drop(reader.take(4)?),
                2 => {
                    let length = reader.varint()?;
                    let content = reader.take(length)?;
                    match message.content(field) {
                        Content::Message(inner) => {
                            entries += 1;
                            nodes += usize::from(inner == Message::Node);
                            pending.push((inner, Reader { rest: content, length: reader.length }));
                        }
                        Content::RepeatedString => entries += 1,
                        // The last byte of every varint is the only one without the top bit.
                        Content::Varints => varints += content.iter().filter(|byte| **byte < 0x80).count(),
                        Content::Other => {}
                    }
                }
                _ => return Err(reader.malformed("a field has an unknown wire type")),
            }
            check("nodes", nodes, MAXIMUM_NODES)?;
            check("entries", entries, MAXIMUM_ENTRIES)?;
            check("integers", varints, MAXIMUM_VARINTS)?;
        }
    }
    Ok(())
}

fn check(what: &'static str, found: usize, limit: usize) -> Result<(), ImportError> {
    if found > limit { Err(ImportError::TooMany { what, found, limit }) } else { Ok(()) }
}

struct Reader<'a> {
    rest: &'a [u8],
    /// Length of the whole file, for messages.
    length: usize,
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, ImportError> {
        let mut value = 0_u64;
        for position in 0..10 {
            let Some((&byte, rest)) = self.rest.split_first() else {
                return Err(self.malformed("a number is cut off"));
            };
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number is longer than 64 bits"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], ImportError> {
        let taken = usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length));
        let Some((taken, rest)) = taken else {
            return Err(self.malformed("a field reaches beyond the end of its message"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn malformed(&self, reason: &str) -> ImportError {
        ImportError::Malformed { reason: format!("{reason} (file of {} bytes)", self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_before_anything_is_decoded() {
        // Graph with many empty nodes: two bytes each on the wire.
        let nodes = [0x0a, 0x00].repeat(MAXIMUM_NODES + 1);
        let mut model = vec![0x3a];
        let mut length = nodes.len();
        while length >= 0x80 {
            model.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        model.push(length as u8);
        model.extend(nodes);
        let error = scan(&model).unwrap_err();
        assert!(matches!(error, ImportError::TooMany { what: "nodes", .. }), "{error}");
    }

    #[test]
    fn refuses_lengths_beyond_the_end() {
        for bytes in [&[0x3a, 0x05, 0x00][..], &[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f], &[0x80], &[0x0b]] {
            assert!(matches!(scan(bytes), Err(ImportError::Malformed { .. })), "{bytes:?}");
        }
        assert!(scan(&[0xff; 11]).is_err());
        assert!(scan(&[]).is_ok());
    }
}
