//! A secret array in the form in which the three servers receive it: an input or a model.

use bytes::Bytes;
use concilium_mpc::input::{Component, DealtShare, InputError, SEED_BYTES, deal, deal_from_seeds};
use concilium_ring::{Element, WipedBytes, wipe};
use concilium_rpc::{
    chunk::chunks,
    v1::{self, component::Kind},
};
use rand::TryRng;
use zeroize::Zeroizing;

/// What one server gets: two components and their data. SECRET; wiped when the last copy is dropped,
/// as far as it is not in the buffers of the transport.
#[derive(Clone)]
pub struct Part {
    own: v1::Component,
    next: v1::Component,
    data: Vec<Bytes>,
}

impl Part {
    /// Component i of server i, for the header of a stream.
    pub fn own(&self) -> v1::Component {
        self.own.clone()
    }

    /// Component i + 1 of server i, for the header of a stream.
    pub fn next(&self) -> v1::Component {
        self.next.clone()
    }

    /// The data components that the header announces, in chunks: own first, then next.
    pub fn chunks(&self) -> impl Iterator<Item = Bytes> + Send + use<> {
        self.data.clone().into_iter().flat_map(chunks)
    }

    /// Bytes of all chunks.
    pub fn data_bytes(&self) -> u64 {
        self.data.iter().map(|data| data.len() as u64).sum()
    }
}

impl From<DealtShare> for Part {
    fn from(mut share: DealtShare) -> Self {
        let mut data = Vec::new();
        let mut message = |component: &mut Component| {
            let kind = match component {
                Component::Seed(seed) => Kind::Seed(Bytes::from_owner(Zeroizing::new(*seed))),
                Component::Data(bytes) => {
                    let bytes = WipedBytes::new(std::mem::take(bytes));
                    let length = bytes.as_ref().len() as u64;
                    data.push(Bytes::from_owner(bytes));
                    Kind::DataBytes(length)
                }
            };
            v1::Component { kind: Some(kind) }
        };
        let (own, next) = (message(&mut share.own), message(&mut share.next));
        Self { own, next, data }
    }
}

/// Shares `values` among the three servers and wipes them. Returns the parts of servers 0, 1, 2 and
/// what `inspect` makes of the dealt shares before they are taken apart.
///
/// # Errors
/// [`InputError::Randomness`] when the generator fails; nothing is shared then.
pub fn share<E: Element, R: TryRng, T>(
    mut values: Vec<E>,
    random: &mut R,
    inspect: impl FnOnce(&[DealtShare; 3]) -> T,
) -> Result<([Part; 3], T), InputError> {
    let dealt = deal(&values, random);
    wipe(&mut values);
    let dealt = dealt?;
    let inspected = inspect(&dealt);
    Ok((dealt.map(Part::from), inspected))
}

/// As [`share`], with components 0 and 1 expanded from these seeds, which must never serve two
/// different values: see [`crate::repeat`].
pub fn share_from_seeds<E: Element>(mut values: Vec<E>, seeds: &[[u8; SEED_BYTES]; 2]) -> [Part; 3] {
    let dealt = deal_from_seeds(&values, seeds);
    wipe(&mut values);
    dealt.map(Part::from)
}

#[cfg(test)]
mod tests {
    use concilium_ring::Z64;
    use concilium_rpc::chunk::MAX_CHUNK_BYTES;
    use rand::rngs::SysRng;

    use super::*;

    /// The elements that a server makes of one component message and its chunks.
    fn expand(message: &v1::Component, data: &[u8], count: usize) -> Vec<Z64> {
        let component = match message.kind.as_ref().unwrap() {
            Kind::Seed(seed) => Component::Seed(seed.as_ref().try_into().unwrap()),
            Kind::DataBytes(length) => {
                assert_eq!(*length, data.len() as u64);
                Component::Data(data.to_vec())
            }
        };
        component.expand(count).unwrap()
    }

    #[test]
    fn the_parts_add_up_to_the_values() {
        let count = MAX_CHUNK_BYTES / 8 + 5;
        let values: Vec<Z64> = (0..count).map(|value| Z64::from_signed(7 - value as i64)).collect();
        let (parts, lengths) = share(values.clone(), &mut SysRng, |dealt| dealt.len()).unwrap();
        assert_eq!(lengths, 3);
        let data: Vec<Vec<u8>> = parts
            .iter()
            .map(|part| {
                let chunks: Vec<_> = part.chunks().collect();
                assert!(chunks.iter().all(|chunk| chunk.len() <= MAX_CHUNK_BYTES));
                assert_eq!(part.data_bytes(), chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>());
                chunks.concat()
            })
            .collect();
        assert_eq!(data[0].len(), 0);
        assert_eq!((data[1].len(), data[2].len()), (8 * count, 8 * count));
        // Component j is what server j calls own and server j - 1 calls next.
        let own = [0, 1, 2].map(|server| expand(&parts[server].own(), &data[server], count));
        let next = [0, 1, 2].map(|server| expand(&parts[server].next(), &data[server], count));
        for server in 0..3 {
            assert_eq!(next[server], own[(server + 1) % 3], "component {}", (server + 1) % 3);
        }
        for (position, value) in values.iter().enumerate() {
            let mut sum = own[0][position];
            sum += own[1][position];
            sum += own[2][position];
            assert_eq!(sum, *value, "value {position}");
        }
    }
}
