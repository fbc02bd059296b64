//! What a party sees is uniform, whatever the secrets are.
//!
//! Every byte that every party receives in every protocol is counted over many sessions on the
//! same, far from uniform secrets. For each party and protocol a chi-square test with 255 degrees
//! of freedom must give a p-value above 1e-9; with at most 45 of them the whole test fails by
//! chance with odds below 1.4e-7. Pairs of messages are tested as well: the exclusive or and the
//! difference of a party's two views of one session must be uniform too, which fails when a mask
//! is used twice.

mod common;

use std::collections::BTreeMap;

use common::{matrix, seed};
use concilium_mpc::conversion::sum_bits;
use concilium_mpc::linear::rescale;
use concilium_mpc::local::{LocalChannel, keys_from_seed, share};
use concilium_mpc::probability::sum_of_probabilities;
use concilium_mpc::shares::AdditiveShare;
use concilium_mpc::{Neighbour, PairwiseKeys, Party, PartyIndex, Protocol, comparison, selection, votes};
use concilium_ring::{Element, Z32, Z64};
use ndarray::Array2;
use statrs::distribution::{ChiSquared, ContinuousCDF};

const SESSIONS: u64 = 400;
const COUNT: usize = 64;

/// Received payloads, by party and protocol, each concatenated over all sessions.
type Views = BTreeMap<(usize, Protocol), Vec<u8>>;

/// Runs every protocol once for each session and collects what the parties receive.
fn views(seed: u64, keys: impl Fn(u64) -> [PairwiseKeys; 3]) -> Views {
    let mut views = Views::new();
    let scores: Array2<Z64> = matrix(COUNT, 4, || 7);
    let narrow_scores: Array2<Z32> = matrix(COUNT, 4, || 7);
    for session in seed..seed + SESSIONS {
        let parts = share(session, &scores);
        let narrow_parts = share(session, &narrow_scores);
        let mut channels = LocalChannel::triple();
        channels.iter_mut().for_each(LocalChannel::keep_view);
        let dealer = PartyIndex::in_turn(session as usize);
        let received = std::thread::scope(|scope| {
            let threads: Vec<_> = channels
                .into_iter()
                .zip(keys(session))
                .zip(parts.iter().zip(&narrow_parts))
                .zip(PartyIndex::ALL)
                .map(|(((channel, keys), (part, narrow)), index)| {
                    scope.spawn(move || {
                        let mut party = Party::new(index, session, &keys, channel);
                        let mut terms = AdditiveShare::zeros(COUNT, 4);
                        terms.terms_mut().assign(&part.own());
                        let x = rescale(&mut party, dealer, terms, &[20; 4], 1).expect("local");
                        let sign = comparison::sign(&mut party, dealer, &x, 32).expect("local");
                        let relu = selection::select_unless(&mut party, dealer, &sign, &x).expect("local");
                        let winners = votes::one_hot_argmax(&mut party, dealer, &relu, 32).expect("local");
                        let sums = sum_bits::<Z64, _>(&mut party, dealer, &winners, 1, COUNT).expect("local");
                        let again =
                            sum_bits::<Z64, _>(&mut party, dealer, &winners, 1, COUNT).expect("local");
                        assert!(again.rows_add_up_to(&mut party, 1).expect("local"));
                        let counts = sums.reshare(&mut party).expect("local");
                        let maximum = counts.maximum(&mut party, dealer).expect("local");
                        let noised = maximum.inject(&mut party, &[0; COUNT]).expect("local");
                        let decisions = noised.at_least(&mut party, dealer, 1, 32).expect("local");
                        decisions.open_among_servers(&mut party).expect("local");
                        let counts = counts.into_rows(&[0, 1]);
                        counts.inject(&mut party, &[0; 8]).expect("local");
                        sum_of_probabilities(&mut party, dealer, &relu, 32, 8, 1, COUNT).expect("local");
                        let mut terms = AdditiveShare::zeros(COUNT, 4);
                        terms.terms_mut().assign(&narrow.own());
                        let x = rescale(&mut party, dealer, terms, &[30; 4], 1).expect("local");
                        let sign = comparison::sign(&mut party, dealer, &x, 31).expect("local");
                        selection::widen_unless(&mut party, dealer, &sign, &x, 31).expect("local");
                        party.into_channel().view().to_vec()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().expect("no party panics")).collect::<Vec<_>>()
        });
        for (party, received) in received.into_iter().enumerate() {
            for (from, address, payload) in received {
                // Both neighbours send the same component, which the party compares: one copy counts.
                if address.step.protocol == Protocol::DecisionOpening && from == Neighbour::Next {
                    continue;
                }
                views.entry((party, address.step.protocol)).or_default().extend(payload);
            }
        }
    }
    views
}

/// The p-value of the hypothesis that bytes are uniform.
fn p_value(bytes: impl Iterator<Item = u8>) -> f64 {
    let mut counts = [0u64; 256];
    bytes.for_each(|byte| counts[usize::from(byte)] += 1);
    let expected = counts.iter().sum::<u64>() as f64 / 256.0;
    assert!(expected >= 5.0, "too few bytes for a chi-square test");
    let statistic = counts.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
    1.0 - ChiSquared::new(255.0).expect("255 degrees of freedom are valid").cdf(statistic)
}

#[test]
fn party_views_are_uniform() {
    let seed = seed();
    let views = views(seed, keys_from_seed);
    let protocols: std::collections::BTreeSet<_> = views.keys().map(|(_, protocol)| *protocol).collect();
    assert_eq!(protocols.len(), Protocol::ALL.len(), "a protocol was not looked at");
    for ((party, protocol), bytes) in &views {
        let p = p_value(bytes.iter().copied());
        println!("party {party}, {protocol}: {} bytes, p = {p:.4}", bytes.len());
        assert!(p > 1e-9, "what party {party} receives in {protocol} is not uniform");
        let (left, right) = bytes.split_at(bytes.len() / 2);
        for (name, combined) in [("xor", true), ("difference", false)] {
            let both = left.iter().zip(right);
            let p = p_value(both.map(|(&a, &b)| if combined { a ^ b } else { a.wrapping_sub(b) }));
            assert!(p > 1e-9, "{name} of what party {party} receives in {protocol} is not uniform");
        }
    }
}

/// Negative control: when all three pairwise keys are equal, the terms of the zero sharing vanish
/// and messages that only they mask show what they hold. The test above must notice.
#[test]
fn a_broken_zero_share_is_caught() {
    let views = views(seed(), |session| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&session.to_be_bytes());
        [0, 1, 2].map(|_| PairwiseKeys::new(bytes, bytes))
    });
    for protocol in [Protocol::Resharing, Protocol::NoiseInjection] {
        let caught =
            (0..3).filter(|&party| p_value(views[&(party, protocol)].iter().copied()) < 1e-9).count();
        println!("{protocol}: {caught} of 3 views caught");
        assert!(caught > 0, "a zero share of zeros went unnoticed in {protocol}");
    }
}

/// The probability that a masked element is any particular byte does not depend on the element
/// type: the zero element is what an unmasked message would hold.
#[test]
fn unmasked_messages_are_caught() {
    let zeros = vec![Z64::ZERO; 4096];
    assert!(p_value(bytemuck::cast_slice::<Z64, u8>(&zeros).iter().copied()) < 1e-9);
}
