//! All three parties in one process, on threads with in-memory links.
//!
//! For tests, benchmarks and an owner's check of its own model. Whoever runs all three parties
//! holds every component anyway: the functions here that put shares together take those of all
//! three. They exist only under the feature `local-world`, which no code of a server asks for.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use concilium_ring::Element;
use ndarray::Array2;

use crate::channel::{Address, Channel, ChannelError, Neighbour, Protocol, Step};
use crate::party::{Party, PartyIndex};
use crate::prss::{PairwiseKeys, Prss};
use crate::shares::{BitShares, Shares};

/// How long a party waits for a message before it reports the other as lost.
const PATIENCE: Duration = Duration::from_secs(60);

type Message = (Address, Bytes);

/// One party's in-memory links. Keeps every payload it received, so that tests can look at a
/// party's view.
pub struct LocalChannel {
    to_next: mpsc::Sender<Message>,
    to_previous: mpsc::Sender<Message>,
    from_next: mpsc::Receiver<Message>,
    from_previous: mpsc::Receiver<Message>,
    view: Option<Vec<(Neighbour, Address, Bytes)>>,
}

impl LocalChannel {
    /// The links of parties 0, 1, 2.
    pub fn triple() -> [LocalChannel; 3] {
        let forward = [mpsc::channel(), mpsc::channel(), mpsc::channel()];
        let backward = [mpsc::channel(), mpsc::channel(), mpsc::channel()];
        let [(f0, t1), (f1, t2), (f2, t0)] = forward;
        let [(b0, s2), (b1, s0), (b2, s1)] = backward;
        let link = |to_next, from_previous, to_previous, from_next| LocalChannel {
            to_next,
            to_previous,
            from_next,
            from_previous,
            view: None,
        };
        [link(f0, t0, b0, s0), link(f1, t1, b1, s1), link(f2, t2, b2, s2)]
    }

    /// Starts keeping received payloads.
    pub fn keep_view(&mut self) {
        self.view = Some(Vec::new());
    }

    /// What was received since [`Self::keep_view`], in order.
    pub fn view(&self) -> &[(Neighbour, Address, Bytes)] {
        self.view.as_deref().unwrap_or_default()
    }
}

impl Channel for LocalChannel {
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError> {
        let link = match to {
            Neighbour::Next => &self.to_next,
            Neighbour::Previous => &self.to_previous,
        };
        link.send((address, payload)).map_err(|_| ChannelError::Disconnected {
            neighbour: to,
            address,
            reason: "the party has ended".into(),
        })
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError> {
        let link = match from {
            Neighbour::Next => &self.from_next,
            Neighbour::Previous => &self.from_previous,
        };
        let (received, payload) = link.recv_timeout(PATIENCE).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => {
                ChannelError::TimedOut { neighbour: from, address, waited_ms: PATIENCE.as_millis() as u64 }
            }
            mpsc::RecvTimeoutError::Disconnected => {
                ChannelError::Disconnected { neighbour: from, address, reason: "the party has ended".into() }
            }
        })?;
        if received != address {
            return Err(ChannelError::OutOfStep {
                neighbour: from,
                expected: address,
                received: received.to_string(),
            });
        }
        if let Some(view) = &mut self.view {
            view.push((from, address, payload.clone()));
        }
        Ok(payload)
    }
}

/// Pairwise keys of parties 0, 1, 2, derived from a seed so that a run can be replayed.
pub fn keys_from_seed(seed: u64) -> [PairwiseKeys; 3] {
    let key = |j: u8| {
        let mut hasher = blake3::Hasher::new_derive_key("concilium v1 local world");
        hasher.update(&seed.to_be_bytes()).update(&[j]);
        *hasher.finalize().as_bytes()
    };
    [0, 1, 2].map(|i| PairwiseKeys::new(key(i), key((i + 1) % 3)))
}

/// Draws words from one stream after another of one key, as protocols do: for benchmarks.
pub fn shared_randomness(seed: u64) -> impl FnMut(&mut [u64]) {
    let [keys, ..] = keys_from_seed(seed);
    let prss = Prss::new(&keys, seed);
    let mut sequence = 0;
    move |words| {
        let step = Step { sequence, protocol: Protocol::PolynomialExchange };
        prss.own.stream(step, 0).fill(words);
        sequence += 1;
    }
}

/// Runs the same program as three parties and returns what each computed.
///
/// # Panics
/// If a party panics; the panic is passed on.
pub fn run<T, F>(seed: u64, program: F) -> [T; 3]
where
    T: Send,
    F: Fn(&mut Party<LocalChannel>) -> T + Sync,
{
    run_with(seed, LocalChannel::triple(), |party| program(party)).map(|(result, _)| result)
}

/// As [`run`], with given links, which are handed back: tests look at what they recorded.
///
/// # Panics
/// If a party panics; the panic is passed on.
pub fn run_with<T, F, C>(seed: u64, channels: [C; 3], program: F) -> [(T, C); 3]
where
    T: Send,
    C: Channel + Send,
    F: Fn(&mut Party<C>) -> T + Sync,
{
    let program = &program;
    let parties = PartyIndex::ALL.into_iter().zip(keys_from_seed(seed)).zip(channels);
    thread::scope(|scope| {
        let handles: Vec<_> = parties
            .map(|((index, keys), channel)| {
                scope.spawn(move || {
                    let mut party = Party::new(index, seed, &keys, channel);
                    let result = program(&mut party);
                    (result, party.into_channel())
                })
            })
            .collect();
        let mut results = handles.into_iter().map(|handle| match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        std::array::from_fn(|_| results.next().expect("three parties were started"))
    })
}

/// Splits a matrix into the shares of parties 0, 1, 2, with masks derived from a seed.
pub fn share<E: Element>(seed: u64, values: &Array2<E>) -> [Shares<E>; 3] {
    let mut random = blake3::Hasher::new_derive_key("concilium v1 local sharing");
    random.update(&seed.to_be_bytes());
    let mut stream = random.finalize_xof();
    let mut component = || {
        let mut elements = vec![E::ZERO; values.len()];
        stream.fill(bytemuck::cast_slice_mut(&mut elements));
        Array2::from_shape_vec(values.dim(), elements).expect("lengths match the shape")
    };
    let (first, second) = (component(), component());
    let mut third = values.as_standard_layout().to_owned();
    third.zip_mut_with(&first, |value, &mask| *value -= mask);
    third.zip_mut_with(&second, |value, &mask| *value -= mask);
    let components = [first, second, third];
    [0, 1, 2].map(|i: usize| Shares::new(components[i].clone(), components[(i + 1) % 3].clone()))
}

/// Splits one plane of bits into the shares of parties 0, 1, 2, with masks derived from a seed.
pub fn share_bits(seed: u64, bits: &[bool]) -> [BitShares; 3] {
    let mut packed = vec![0u64; crate::shares::words_of(bits.len())];
    for (i, &bit) in bits.iter().enumerate() {
        packed[i / 64] |= u64::from(bit) << (i % 64);
    }
    let mut random = blake3::Hasher::new_derive_key("concilium v1 local bit sharing");
    random.update(&seed.to_be_bytes());
    let mut stream = random.finalize_xof();
    let mut component = || {
        let mut words = vec![0u64; packed.len()];
        stream.fill(bytemuck::cast_slice_mut(&mut words));
        words
    };
    let (first, second) = (component(), component());
    let third = packed.iter().zip(&first).zip(&second).map(|((word, a), b)| word ^ a ^ b).collect();
    let components = [first, second, third];
    [0, 1, 2]
        .map(|i: usize| BitShares::new(1, bits.len(), components[i].clone(), components[(i + 1) % 3].clone()))
}

/// Puts the shares of parties 0, 1, 2 together.
///
/// # Panics
/// If the two copies of a component differ: the protocol under test is broken.
pub fn reconstruct<E: Element>(parts: &[Shares<E>; 3]) -> Array2<E> {
    for i in 0..3 {
        assert!(parts[i].next() == parts[(i + 1) % 3].own(), "copies of component {} differ", (i + 1) % 3);
    }
    let mut sum = parts[0].own().to_owned();
    for part in &parts[1..] {
        sum.zip_mut_with(&part.own(), |total, &component| *total += component);
    }
    sum
}

/// Puts boolean shares of parties 0, 1, 2 together: `result[plane][bit]`.
///
/// # Panics
/// If the two copies of a component differ: the protocol under test is broken.
pub fn reconstruct_bits(parts: &[BitShares; 3]) -> Vec<Vec<bool>> {
    let (planes, bits) = (parts[0].planes(), parts[0].bits());
    let bit = |component: &[u64], plane: usize, i: usize| {
        component[parts[0].range(plane)][i / 64] >> (i % 64) & 1 == 1
    };
    (0..planes)
        .map(|plane| {
            (0..bits)
                .map(|place| {
                    for i in 0..3 {
                        let copies = [parts[i].next(), parts[(i + 1) % 3].own()];
                        let [first, second] = copies.map(|component| bit(component, plane, place));
                        assert_eq!(first, second, "copies of component {} differ", (i + 1) % 3);
                    }
                    parts.iter().fold(false, |value, part| value ^ bit(part.own(), plane, place))
                })
                .collect()
        })
        .collect()
}
