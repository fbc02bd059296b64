//! Long byte strings as streams of small messages, and back.
//!
//! A component of a model or of a large batch is longer than one gRPC message may be. The sender cuts
//! it into chunks of at most [`MAX_CHUNK_BYTES`]; the receiver knows the announced lengths and refuses
//! the first chunk that does not fit. Memory grows with what has arrived, never with what was
//! announced.

use bytes::Bytes;
use concilium_ring::wipe;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::status::RpcError;

/// Largest chunk, in bytes.
pub const MAX_CHUNK_BYTES: usize = 256 * 1024;

/// Why chunks cannot be put together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// The announced lengths add up to more than the receiver takes.
    #[error("the stream announces {announced} bytes, above the limit of {limit}; send less at a time")]
    AboveLimit {
        /// Sum of the announced lengths, in bytes; `u64::MAX` if the sum is larger.
        announced: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// One chunk is larger than [`MAX_CHUNK_BYTES`].
    #[error("a chunk has {got} bytes, above the limit of {limit}; cut the data into smaller chunks")]
    LargeChunk {
        /// Length of the chunk, in bytes.
        got: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A chunk has no bytes: a stream of such chunks would never end.
    #[error("a chunk is empty; leave it out")]
    EmptyChunk,
    /// More bytes arrived than were announced.
    #[error("the stream goes on after the announced {announced} bytes; announce the full length")]
    TooLong {
        /// Sum of the announced lengths, in bytes.
        announced: u64,
    },
    /// The stream ended early.
    #[error("the stream ended after {got} of {announced} bytes of `{part}`; send the part in full")]
    TooShort {
        /// The part that is incomplete.
        part: &'static str,
        /// The announced length, in bytes.
        announced: u64,
        /// What arrived, in bytes.
        got: u64,
    },
}

impl From<ChunkError> for RpcError {
    fn from(error: ChunkError) -> Self {
        match error {
            ChunkError::AboveLimit { announced, limit } => {
                RpcError::TooLarge { what: "bytes of the stream".to_owned(), limit, got: announced }
            }
            ChunkError::LargeChunk { got, limit } => RpcError::TooLarge {
                what: "bytes of a chunk".to_owned(),
                limit: limit as u64,
                got: got as u64,
            },
            other => {
                RpcError::MalformedShares { what: "the chunk stream".to_owned(), problem: other.to_string() }
            }
        }
    }
}

/// Cuts `bytes` into chunks of at most [`MAX_CHUNK_BYTES`] without copying them.
pub fn chunks(bytes: Bytes) -> impl Iterator<Item = Bytes> + Send {
    let mut rest = bytes;
    std::iter::from_fn(move || (!rest.is_empty()).then(|| rest.split_to(rest.len().min(MAX_CHUNK_BYTES))))
}

/// One announced part of a stream and what has arrived of it.
struct Part {
    name: &'static str,
    announced: u64,
    bytes: Zeroizing<Vec<u8>>,
}

impl Part {
    fn missing(&self) -> u64 {
        self.announced - self.bytes.len() as u64
    }

    /// Appends `piece`, which is no longer than what is missing. A vector that grows by itself leaves
    /// the old copy of the secret in freed memory; this one wipes it.
    fn append(&mut self, piece: &[u8]) {
        let needed = self.bytes.len() + piece.len();
        if needed > self.bytes.capacity() {
            let announced = usize::try_from(self.announced).unwrap_or(usize::MAX);
            let capacity = needed.saturating_mul(2).min(announced);
            let mut larger = Vec::with_capacity(capacity);
            larger.extend_from_slice(&self.bytes);
            wipe(&mut self.bytes);
            self.bytes = Zeroizing::new(larger);
        }
        self.bytes.extend_from_slice(piece);
    }
}

/// Puts the announced parts of a stream together, one part after the other.
///
/// The parts are wiped when they are dropped; the buffers of the transport, from which the chunks
/// come, are not.
pub struct Assembler {
    parts: Vec<Part>,
    /// Index of the first part that is incomplete.
    current: usize,
}

impl Assembler {
    /// Expects parts of these names and lengths in bytes, together at most `limit_bytes`.
    ///
    /// # Errors
    /// [`ChunkError::AboveLimit`].
    pub fn new(
        parts: impl IntoIterator<Item = (&'static str, u64)>,
        limit_bytes: u64,
    ) -> Result<Self, ChunkError> {
        let parts: Vec<_> = parts
            .into_iter()
            .map(|(name, announced)| Part { name, announced, bytes: Zeroizing::new(Vec::new()) })
            .collect();
        let announced = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.announced));
        if announced > limit_bytes {
            return Err(ChunkError::AboveLimit { announced, limit: limit_bytes });
        }
        let mut assembler = Self { parts, current: 0 };
        assembler.skip_complete();
        Ok(assembler)
    }

    /// Takes the next chunk. A chunk may end one part and begin the next one.
    ///
    /// # Errors
    /// [`ChunkError::EmptyChunk`], [`ChunkError::LargeChunk`] or [`ChunkError::TooLong`]; the
    /// assembler is then good for nothing and should be dropped.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), ChunkError> {
        if chunk.is_empty() {
            return Err(ChunkError::EmptyChunk);
        }
        if chunk.len() > MAX_CHUNK_BYTES {
            return Err(ChunkError::LargeChunk { got: chunk.len(), limit: MAX_CHUNK_BYTES });
        }
        let mut rest = chunk;
        while !rest.is_empty() {
            let Some(part) = self.parts.get_mut(self.current) else {
                let announced = self.parts.iter().map(|part| part.announced).sum();
                return Err(ChunkError::TooLong { announced });
            };
            let missing = usize::try_from(part.missing()).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at(rest.len().min(missing));
            part.append(piece);
            rest = after;
            self.skip_complete();
        }
        Ok(())
    }

    /// Whether every announced byte has arrived.
    pub fn is_complete(&self) -> bool {
        self.current == self.parts.len()
    }

    /// The parts in the announced order.
    ///
    /// # Errors
    /// [`ChunkError::TooShort`] names the first part that is incomplete.
    pub fn finish(self) -> Result<Vec<Zeroizing<Vec<u8>>>, ChunkError> {
        if let Some(part) = self.parts.get(self.current) {
            return Err(ChunkError::TooShort {
                part: part.name,
                announced: part.announced,
                got: part.bytes.len() as u64,
            });
        }
        Ok(self.parts.into_iter().map(|part| part.bytes).collect())
    }

    fn skip_complete(&mut self) {
        while self.parts.get(self.current).is_some_and(|part| part.missing() == 0) {
            self.current += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any two parts, cut in any way, come back; one byte less or more is refused.
    fn check(own: Vec<u8>, next: Vec<u8>, cuts: &[usize]) -> Result<(), TestCaseError> {
        let lengths = [("own", own.len() as u64), ("next", next.len() as u64)];
        let total = (own.len() + next.len()) as u64;
        let stream = [own.clone(), next.clone()].concat();
        let mut pieces = Vec::new();
        let mut rest = stream.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        let mut assembler = Assembler::new(lengths, total).unwrap();
        for piece in &pieces {
            assembler.push(piece).unwrap();
        }
        prop_assert!(assembler.is_complete());
        let too_long = assembler.push(&[0]);
        prop_assert_eq!(too_long, Err(ChunkError::TooLong { announced: total }));
        let parts = assembler.finish().unwrap();
        prop_assert_eq!(&*parts[0], &own);
        prop_assert_eq!(&*parts[1], &next);

        if let Some((last, before)) = pieces.split_last() {
            let mut assembler = Assembler::new(lengths, total).unwrap();
            for piece in before {
                assembler.push(piece).unwrap();
            }
            if last.len() > 1 {
                assembler.push(&last[1..]).unwrap();
            }
            let short = matches!(assembler.finish(), Err(ChunkError::TooShort { .. }));
            prop_assert!(short);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn parts_come_back_however_they_are_cut(
            own in proptest::collection::vec(any::<u8>(), 0..4000),
            next in proptest::collection::vec(any::<u8>(), 0..4000),
            cuts in proptest::collection::vec(1_usize..3000, 1..8),
        ) {
            check(own, next, &cuts)?;
        }

        #[test]
        fn cutting_and_assembling_is_the_identity(length in 0_usize..3 * MAX_CHUNK_BYTES) {
            let bytes: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            let mut assembler = Assembler::new([("data", length as u64)], length as u64).unwrap();
            let mut number = 0;
            for chunk in chunks(Bytes::from(bytes.clone())) {
                prop_assert!(chunk.len() <= MAX_CHUNK_BYTES);
                assembler.push(&chunk).unwrap();
                number += 1;
            }
            prop_assert_eq!(number, length.div_ceil(MAX_CHUNK_BYTES));
            let parts = assembler.finish().unwrap();
            prop_assert_eq!(&*parts[0], &bytes);
        }
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut assembler = Assembler::new([("data", u64::MAX)], u64::MAX).unwrap();
        assembler.push(&[1; 1000]).unwrap();
        assert!(assembler.parts[0].bytes.capacity() <= 2000);
    }

    #[test]
    fn limits_are_named() {
        let above = Assembler::new([("own", u64::MAX), ("next", 1)], 1 << 30).err().unwrap();
        assert_eq!(above, ChunkError::AboveLimit { announced: u64::MAX, limit: 1 << 30 });
        assert_eq!(RpcError::from(above).reason(), "TOO_LARGE");

        let mut assembler = Assembler::new([("own", 1 << 20)], 1 << 20).unwrap();
        assert_eq!(assembler.push(&[]), Err(ChunkError::EmptyChunk));
        let large = assembler.push(&vec![0; MAX_CHUNK_BYTES + 1]).unwrap_err();
        assert_eq!(large, ChunkError::LargeChunk { got: MAX_CHUNK_BYTES + 1, limit: MAX_CHUNK_BYTES });
        let short = assembler.finish().unwrap_err();
        assert_eq!(RpcError::from(short).reason(), "MALFORMED_SHARES");
    }
}
