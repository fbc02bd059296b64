//! Keys and values of the tables, as bytes.
//!
//! Numbers in keys are big-endian, so that rows are sorted by them. A name in a key has its length
//! before it, so no two lists of names share an encoding, and all rows of one task epoch are beside
//! each other.

use super::{ContentDigest, LedgerHead, RequestKey, Total};
use crate::parameter::NanoRho;

/// Number of the layout of all tables and of the log's encoding. A change takes a new one.
pub(super) const SCHEMA: u32 = 3;

/// Key of the schema number in its table.
pub(super) const SCHEMA_KEY: &[u8] = b"schema";
/// Key of the key under which content digests are stored.
pub(super) const DIGEST_KEY: &[u8] = b"digest key";
/// Key of the end of the log in its table.
pub(super) const HEAD_KEY: &[u8] = b"head";

/// Writes keys and values.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A text of at most 65535 bytes; names have at most 512, and other texts are cut before.
    pub(super) fn text(self, text: &str) -> Self {
        let length = u16::try_from(text.len()).expect("texts are limited where they come in");
        self.bytes(&length.to_be_bytes()).bytes(text.as_bytes())
    }

    pub(super) fn rho(self, rho: NanoRho) -> Self {
        self.u64(rho.units())
    }

    pub(super) fn total(self, total: Total) -> Self {
        self.rho(total.rho).u64(total.requests).u64(total.rows)
    }
}

/// Reads what [`Writer`] wrote; every method gives `None` on other bytes.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn text(&mut self) -> Option<String> {
        let length = usize::from(u16::from_be_bytes(self.array()?));
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(head.to_vec()).ok()
    }

    pub(super) fn rho(&mut self) -> Option<NanoRho> {
        self.u64().map(NanoRho::new)
    }

    pub(super) fn total(&mut self) -> Option<Total> {
        Some(Total { rho: self.rho()?, requests: self.u64()?, rows: self.u64()? })
    }

    /// `value` if nothing is left to be read.
    pub(super) fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// Key of a task epoch, and beginning of the keys of its parts.
pub(super) fn epoch_key(task: &str, epoch: u64) -> Vec<u8> {
    Writer::with_capacity(task.len() + 40).text(task).u64(epoch).0
}

/// Key of a client or an owner in a task epoch.
pub(super) fn part_key(task: &str, epoch: u64, name: &str) -> Vec<u8> {
    Writer(epoch_key(task, epoch)).text(name).0
}

/// The name in a key that [`part_key`] made.
pub(super) fn part_name(key: &[u8]) -> Option<String> {
    let mut reader = Reader(key);
    reader.text()?;
    reader.u64()?;
    let name = reader.text()?;
    reader.end(name)
}

/// Key of a request and of its result.
pub(super) fn request_key(key: &RequestKey) -> Vec<u8> {
    Writer(part_key(&key.task, key.epoch, &key.client)).bytes(&key.request.0).0
}

/// Key of what a task epoch had spent at a time.
pub(super) fn pace_key(task: &str, epoch: u64, time_ms: u64) -> Vec<u8> {
    Writer(epoch_key(task, epoch)).u64(time_ms).0
}

/// Key of something that has one name.
pub(super) fn name_key(name: &str) -> Vec<u8> {
    Writer::default().text(name).0
}

/// First key after all that begin with `prefix`; `None` if there is none.
pub(super) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < u8::MAX)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after)
}

/// What is stored of a request. Rows are never deleted, so that no id is ever used for two answers.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) digest: ContentDigest,
    pub(super) released: bool,
    /// When it was last committed.
    pub(super) time_ms: u64,
    /// The log's entry of that commit.
    pub(super) entry: u64,
}

impl Request {
    pub(super) fn encode(self) -> Vec<u8> {
        let Self { digest, released, time_ms, entry } = self;
        Writer::with_capacity(49).bytes(&digest.0).u8(released.into()).u64(time_ms).u64(entry).0
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let digest = ContentDigest(reader.array()?);
        let released = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let request = Self { digest, released, time_ms: reader.u64()?, entry: reader.u64()? };
        reader.end(request)
    }
}

/// The end of the log with the time of its last entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) head: LedgerHead,
    pub(super) time_ms: u64,
}

impl Head {
    pub(super) fn encode(self) -> Vec<u8> {
        Writer::with_capacity(48).u64(self.head.entries).bytes(&self.head.hash).u64(self.time_ms).0
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let head = LedgerHead { entries: reader.u64()?, hash: reader.array()? };
        let head = Self { head, time_ms: reader.u64()? };
        reader.end(head)
    }
}

/// Reads a total; one that is not there is zero.
pub(super) fn decode_total(bytes: Option<&[u8]>) -> Option<Total> {
    let Some(bytes) = bytes else {
        return Some(Total::default());
    };
    let mut reader = Reader(bytes);
    let total = reader.total()?;
    reader.end(total)
}

/// Writes a total.
pub(super) fn encode_total(total: Total) -> Vec<u8> {
    Writer::with_capacity(24).total(total).0
}

/// Reads a list of names that [`Writer::text`] wrote.
pub(super) fn decode_names(bytes: &[u8]) -> Option<Vec<String>> {
    let mut reader = Reader(bytes);
    let mut names = Vec::new();
    while !reader.0.is_empty() {
        names.push(reader.text()?);
    }
    Some(names)
}

/// A row of the log: the entry's hash, then its bytes.
pub(super) fn log_row(hash: &[u8; 32], entry: &[u8]) -> Vec<u8> {
    Writer::with_capacity(32 + entry.len()).bytes(hash).bytes(entry).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_task_epoch_are_beside_each_other() {
        let mut keys = Vec::new();
        for (task, epoch) in [("a", 1), ("a", 2), ("aa", 1), ("b", 1)] {
            for name in ["", "x", "xx", "y"] {
                keys.push((epoch_key(task, epoch), part_key(task, epoch, name), name));
            }
        }
        for (prefix, key, name) in &keys {
            assert_eq!(part_name(key).as_deref(), Some(*name));
            let after = after_prefix(prefix).expect("no name is that long");
            for (other_prefix, other, _) in &keys {
                assert_eq!((prefix..&after).contains(&other), prefix == other_prefix);
            }
        }
        assert_eq!(after_prefix(&[1, 255, 255]), Some(vec![2]));
        assert_eq!(after_prefix(&[255, 255]), None);
    }
}
