//! What a dealer gives out, what a client puts together, and what is refused on the way.

mod common;

use common::{Random, seed};
use concilium_mpc::PartyIndex;
use concilium_mpc::input::{Component, DealtShare, InputError, SEED_BYTES, deal};
use concilium_mpc::opening::{OpeningError, open_labels, open_sums};
use concilium_mpc::release::ReleasedComponents;
use concilium_ring::{Element, Z32, Z64};
use proptest::prelude::*;
use rand::rngs::SysRng;

/// A generator that fails, as an operating system's can.
struct Broken;

#[derive(Debug)]
struct NoEntropy;

impl std::fmt::Display for NoEntropy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("no entropy")
    }
}

impl std::error::Error for NoEntropy {}

impl rand::TryRng for Broken {
    type Error = NoEntropy;

    fn try_next_u32(&mut self) -> Result<u32, NoEntropy> {
        Err(NoEntropy)
    }

    fn try_next_u64(&mut self) -> Result<u64, NoEntropy> {
        Err(NoEntropy)
    }

    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), NoEntropy> {
        Err(NoEntropy)
    }
}

fn sum<E: Element>(dealt: &[DealtShare; 3], count: usize) -> Vec<E> {
    let mut total = vec![E::ZERO; count];
    for share in dealt {
        let component = share.own.expand::<E>(count).expect("lengths fit");
        total.iter_mut().zip(component).for_each(|(sum, part)| *sum += part);
    }
    total
}

proptest! {
    #[test]
    fn components_add_up_and_neighbours_hold_the_same(words: Vec<u64>) {
        let values: Vec<Z64> = words.iter().map(|&word| Z64::from_unsigned(word)).collect();
        let narrow: Vec<Z32> = words.iter().map(|&word| Z32::from_unsigned(word)).collect();
        let dealt = deal(&values, &mut SysRng).expect("randomness");
        prop_assert!(sum::<Z64>(&dealt, values.len()) == values);
        let dealt_narrow = deal(&narrow, &mut SysRng).expect("randomness");
        prop_assert!(sum::<Z32>(&dealt_narrow, narrow.len()) == narrow);
        for server in PartyIndex::ALL {
            let (here, there) = (&dealt[server.number()], &dealt[server.next().number()]);
            prop_assert_eq!(here.next.digest(&[1; 32]), there.own.digest(&[1; 32]));
            prop_assert!(here.next.digest(&[1; 32]) != here.next.digest(&[2; 32]));
            prop_assert!(here.own.digest(&[1; 32]) != here.next.digest(&[1; 32]));
        }
        // Servers 0 and 1, 0 and 2 share seeds; only component 2 is as long as the value.
        let seed = |component: &Component| matches!(component, Component::Seed(_));
        prop_assert!(seed(&dealt[0].own) && seed(&dealt[0].next) && seed(&dealt[1].own) && seed(&dealt[2].next));
    }

    #[test]
    fn data_of_the_wrong_length_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), count in 0usize..12) {
        let component = Component::Data(bytes.clone());
        match component.expand::<Z64>(count) {
            Ok(elements) => prop_assert!(elements.len() == count && bytes.len() == 8 * count),
            Err(InputError::WrongLength { expected, received, .. }) => {
                prop_assert_eq!((expected, received), (8 * count, bytes.len()));
                prop_assert!(bytes.len() != 8 * count);
            }
            Err(other) => prop_assert!(false, "another error: {}", other),
        }
    }
}

/// Anyone can expand a seed with stock AES: the first block is AES-256 of the zero block, here for
/// the all-zero key (NIST FIPS 197 arithmetic; value from the AESAVS known-answer tests).
#[test]
fn seeds_expand_by_plain_aes_counter_mode() {
    let elements = Component::Seed([0; SEED_BYTES]).expand::<Z64>(2).expect("any length");
    let bytes: Vec<u8> = elements.iter().flat_map(|element| element.0.to_le_bytes()).collect();
    let expected =
        [0xdc, 0x95, 0xc0, 0x78, 0xa2, 0x40, 0x89, 0x89, 0xad, 0x48, 0xa2, 0x14, 0x92, 0x84, 0x20, 0x87];
    assert_eq!(bytes, expected);
}

#[test]
fn without_randomness_nothing_is_shared() {
    let refusal = deal(&[Z64::ONE], &mut Broken).err().expect("a broken generator is noticed");
    assert!(refusal.to_string().contains("no entropy"), "{refusal}");
}

/// Three servers' parts of the given values.
fn released(values: &[u64], random: &mut Random) -> [ReleasedComponents; 3] {
    let components: Vec<Vec<u64>> = {
        let mut draw = || values.iter().map(|_| random.word()).collect::<Vec<_>>();
        let (first, second) = (draw(), draw());
        let third =
            values.iter().zip(&first).zip(&second).map(|((v, a), b)| v.wrapping_sub(*a).wrapping_sub(*b));
        let third = third.collect();
        vec![first, second, third]
    };
    let bytes =
        |component: &Vec<u64>| component.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    [0, 1, 2]
        .map(|i| ReleasedComponents { own: bytes(&components[i]), next: bytes(&components[(i + 1) % 3]) })
}

#[test]
fn altered_short_and_impossible_answers_are_discarded() {
    let mut random = Random(seed());
    let values = [5u64, (-7i64) as u64, 0];
    let honest = released(&values, &mut random);
    assert_eq!(open_sums(&honest, 3), Ok(vec![5, -7, 0]));
    // Every single byte of every copy matters.
    for server in 0..3 {
        for byte in 0..24 {
            for own in [true, false] {
                let mut parts = honest.clone();
                let component = if own { &mut parts[server].own } else { &mut parts[server].next };
                component[byte] ^= 1;
                let refusal = open_sums(&parts, 3).expect_err("an altered copy is noticed");
                let OpeningError::Inconsistent { first, second } = refusal else { panic!("{refusal}") };
                assert!(first.number() == server || second.number() == server);
            }
        }
    }
    let mut parts = honest.clone();
    parts[1].next.pop();
    let server = PartyIndex::ALL[1];
    assert_eq!(open_sums(&parts, 3), Err(OpeningError::WrongLength { server, expected: 24, received: 23 }));
    assert!(open_sums(&honest, 4).is_err());
    // Labels: exclusive or of three components of two bytes.
    let label = |a: u16, b: u16, c: u16| {
        let parts = [a, b, c].map(|word| word.to_le_bytes().to_vec());
        [0, 1, 2].map(|i| ReleasedComponents { own: parts[i].clone(), next: parts[(i + 1) % 3].clone() })
    };
    assert_eq!(open_labels(&label(0x1234, 0x00ff, 0x1234 ^ 0x00ff ^ 9), 1, 10), Ok(vec![9]));
    let refusal = open_labels(&label(1, 2, 1 ^ 2 ^ 10), 1, 10);
    assert_eq!(refusal, Err(OpeningError::LabelOutOfRange { row: 0, classes: 10 }));
}
