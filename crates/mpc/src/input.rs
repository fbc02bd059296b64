//! Sharing an input or a model: what the dealer sends, and what the servers make of it.
//!
//! The dealer (a client or an owner) draws two seeds. Components 0 and 1 are their expansions and
//! component 2 is the value minus both. Server 0 gets two seeds, server 1 a seed and data, server 2
//! data and a seed: the element's bytes for each element to two of the servers, nothing but seeds to
//! the third.

use aes::Aes256;
use concilium_ring::element::{read_elements, write_elements};
use concilium_ring::{Element, wipe};
use ctr::cipher::{KeyIvInit, StreamCipher};
use rand::TryRng;
use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use crate::party::PartyIndex;

/// Bytes of a seed.
pub const SEED_BYTES: usize = 32;

/// Why a component can't be used. Nothing of the component is in the error.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InputError {
    /// A component's data has the wrong length.
    #[error(
        "a component holds {received} bytes where {expected} are due ({elements} elements of {element_bytes} bytes)"
    )]
    WrongLength {
        /// Bytes due.
        expected: usize,
        /// Bytes received.
        received: usize,
        /// Elements of the value.
        elements: usize,
        /// Bytes of an element.
        element_bytes: usize,
    },
    /// The random number generator failed, so nothing was shared.
    #[error("the operating system gave no randomness, so nothing was shared: {0}")]
    Randomness(String),
}

/// One component of a sharing, as it is sent and stored. Overwritten when it is dropped.
#[derive(Clone)]
pub enum Component {
    /// The component is the AES-256 counter-mode keystream of this key from block 0, read as
    /// little-endian elements. A seed expands to one component only.
    Seed([u8; SEED_BYTES]),
    /// The component's elements, little-endian.
    Data(Vec<u8>),
}

impl Drop for Component {
    fn drop(&mut self) {
        match self {
            Component::Seed(seed) => seed.zeroize(),
            Component::Data(bytes) => wipe(bytes),
        }
    }
}

impl Component {
    /// The elements of the component.
    ///
    /// # Errors
    /// [`InputError::WrongLength`] if data does not hold exactly `count` elements.
    pub fn expand<E: Element>(&self, count: usize) -> Result<Vec<E>, InputError> {
        match self {
            Component::Seed(seed) => Ok(expand_seed(seed, count)),
            Component::Data(bytes) => match read_elements(bytes) {
                Some(elements) if elements.len() == count => Ok(elements),
                _ => Err(InputError::WrongLength {
                    expected: count.saturating_mul(E::BYTES),
                    received: bytes.len(),
                    elements: count,
                    element_bytes: E::BYTES,
                }),
            },
        }
    }

    /// A digest of the component with which its two holders compare what the dealer sent them.
    /// `context` binds it to one request or model. Only the two holders may see it.
    pub fn digest(&self, context: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(context);
        match self {
            Component::Seed(seed) => hasher.update(b"seed").update(seed),
            Component::Data(bytes) => hasher.update(b"data").update(bytes),
        };
        *hasher.finalize().as_bytes()
    }
}

fn expand_seed<E: Element>(seed: &[u8; SEED_BYTES], count: usize) -> Vec<E> {
    let mut elements = vec![E::ZERO; count];
    let mut generator = ctr::Ctr128BE::<Aes256>::new(seed.into(), &[0; 16].into());
    generator.apply_keystream(bytemuck::cast_slice_mut(&mut elements));
    elements
}

/// What one server gets: components i and i + 1.
#[derive(Clone)]
pub struct DealtShare {
    /// Component i of server i.
    pub own: Component,
    /// Component i + 1 of server i.
    pub next: Component,
}

/// Shares `values` among the three servers.
///
/// Perfectly hides the values from any one server, up to the pseudorandomness of AES-256.
///
/// # Errors
/// [`InputError::Randomness`] when the generator fails; nothing is shared then.
pub fn deal<E: Element, R: TryRng>(values: &[E], random: &mut R) -> Result<[DealtShare; 3], InputError> {
    let mut seeds = Zeroizing::new([[0; SEED_BYTES]; 2]);
    for seed in seeds.iter_mut() {
        random.try_fill_bytes(seed).map_err(|error| InputError::Randomness(error.to_string()))?;
    }
    Ok(deal_from_seeds(values, &seeds))
}

/// As [`deal`], with components 0 and 1 expanded from these seeds: the same seeds and values give the
/// same sharing again.
///
/// The seeds must be unpredictable, and a pair of seeds must never serve two different values: the
/// holders of component 2 would learn their difference.
pub fn deal_from_seeds<E: Element>(values: &[E], seeds: &[[u8; SEED_BYTES]; 2]) -> [DealtShare; 3] {
    let mut rest = values.to_vec();
    for seed in seeds {
        let mut expanded = expand_seed::<E>(seed, values.len());
        rest.iter_mut().zip(&expanded).for_each(|(value, &component)| *value -= component);
        wipe(&mut expanded);
    }
    let mut data = Vec::with_capacity(rest.len() * E::BYTES);
    write_elements(&rest, &mut data);
    let components = [Component::Seed(seeds[0]), Component::Seed(seeds[1]), Component::Data(data)];
    PartyIndex::ALL.map(|server| DealtShare {
        own: components[server.number()].clone(),
        next: components[server.next().number()].clone(),
    })
}
