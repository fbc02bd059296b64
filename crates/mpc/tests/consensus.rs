//! The threshold test against plain arithmetic, and how far one owner moves what it rests on.

mod common;

use common::{Random, matrix, seed};
use concilium_mpc::channel::{Address, Channel, ChannelError, Neighbour, Protocol};
use concilium_mpc::conversion::sum_bits;
use concilium_mpc::local::{LocalChannel, run, run_with, share};
use concilium_mpc::opening::{open_confident_labels, open_sums};
use concilium_mpc::release::Noised;
use concilium_mpc::{Bytes, MpcError, Party, PartyIndex, Shares, votes};
use concilium_ring::{Element, Z64};
use ndarray::Array2;
use proptest::prelude::*;

/// Noise of the three parties for `count` values.
fn noise(random: &mut Random, count: usize, bits: u32) -> [Vec<i64>; 3] {
    [0; 3].map(|_| (0..count).map(|_| random.signed(bits)).collect())
}

fn total(noise: &[Vec<i64>; 3], place: usize) -> i64 {
    noise.iter().map(|part| part[place]).sum()
}

/// What the three parties do with scores `[models * rows, classes]` and the noise of each.
struct Opened {
    counts: Vec<i64>,
    maxima: Vec<i64>,
}

/// Opens counts and maxima with their noise: what a task would release of each.
fn open(
    seed: u64,
    scores: &Array2<Z64>,
    models: usize,
    on_counts: &[Vec<i64>; 3],
    on_maxima: &[Vec<i64>; 3],
) -> Opened {
    let (rows, classes) = (scores.nrows() / models, scores.ncols());
    let parts = share(seed, scores);
    let results = run(seed, |party| {
        let place = party.index().number();
        let dealer = PartyIndex::in_turn(seed as usize);
        let winners = votes::one_hot_argmax(party, dealer, &parts[place], 32).expect("local");
        let sums = sum_bits::<Z64, _>(party, dealer, &winners, models, rows).expect("local");
        let counts = sums.reshare(party).expect("local");
        let maximum = counts.maximum(party, dealer).expect("local");
        let maximum = maximum.inject(party, &on_maxima[place]).expect("local");
        let all: Vec<usize> = (0..rows).collect();
        let counts = counts.into_rows(&all).inject(party, &on_counts[place]).expect("local");
        (counts.components(), maximum.components())
    });
    let counts = open_sums(&results.each_ref().map(|r| r.0.clone()), rows * classes);
    let maxima = open_sums(&results.each_ref().map(|r| r.1.clone()), rows);
    Opened { counts: counts.expect("copies agree"), maxima: maxima.expect("copies agree") }
}

/// Votes of honest scores, `[rows, classes]`; ties go to the lower class.
fn votes_of(scores: &Array2<Z64>, rows: usize) -> Vec<Vec<i64>> {
    let mut counts = vec![vec![0; scores.ncols()]; rows];
    for (row, line) in scores.rows().into_iter().enumerate() {
        let best = line.iter().map(|v| v.to_signed()).max().expect("a row has classes");
        let winner = line.iter().position(|v| v.to_signed() == best).expect("the maximum is there");
        counts[row % rows][winner] += 1;
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Opened words are the counts, and their maximum, plus the noise that was put in.
    #[test]
    fn counts_and_maxima_open_to_themselves_plus_noise(
        seed: u64, models in 1usize..12, rows in 1usize..70, classes in 1usize..7,
    ) {
        // Twelve models and few classes: ties are common.
        prop_assume!(classes > 1);
        let mut random = Random(seed);
        let scores: Array2<Z64> = matrix(models * rows, classes, || random.signed(20));
        let on_counts = noise(&mut random, rows * classes, 8);
        let on_maxima = noise(&mut random, rows, 8);
        let opened = open(seed, &scores, models, &on_counts, &on_maxima);
        for (row, counts) in votes_of(&scores, rows).iter().enumerate() {
            for (class, count) in counts.iter().enumerate() {
                let place = row * classes + class;
                prop_assert_eq!(opened.counts[place], count + total(&on_counts, place));
            }
            let largest = counts.iter().max().expect("a row has classes");
            prop_assert_eq!(opened.maxima[row], largest + total(&on_maxima, row));
        }
    }

    /// Bits are those of plain arithmetic, at the threshold and beside it, and the rows that pass
    /// are answered by their own counts.
    #[test]
    fn decisions_and_labels_are_those_of_plain_arithmetic(
        seed: u64, models in 1usize..12, rows in 1usize..140, classes in 2usize..7, threshold in 1u32..14,
    ) {
        let mut random = Random(seed);
        let scores: Array2<Z64> = matrix(models * rows, classes, || random.signed(20));
        let on_maxima = noise(&mut random, rows, 3);
        let on_counts = noise(&mut random, rows * classes, 3);
        let parts = share(seed, &scores);
        let results = run(seed, |party| {
            let place = party.index().number();
            let dealer = PartyIndex::in_turn(seed as usize);
            let winners = votes::one_hot_argmax(party, dealer, &parts[place], 32).expect("local");
            let sums = sum_bits::<Z64, _>(party, dealer, &winners, models, rows).expect("local");
            let counts = sums.reshare(party).expect("local");
            let noised = counts.maximum(party, dealer).and_then(|m| m.inject(party, &on_maxima[place]));
            let decisions = noised.expect("local").at_least(party, dealer, threshold, 32).expect("local");
            let decisions = decisions.open_among_servers(party).expect("local");
            let passed: Vec<usize> = (0..rows).filter(|&row| decisions[row]).collect();
            let own: Vec<i64> = passed
                .iter()
                .flat_map(|row| on_counts[place][row * classes..(row + 1) * classes].to_vec())
                .collect();
            // With no row that passes there is nothing to compute.
            let labels = (!passed.is_empty()).then(|| {
                let noised = counts.into_rows(&passed).inject(party, &own).expect("local");
                noised.argmax(party, dealer, 32).expect("local")
            });
            let labels = Noised::spread(labels, party.index(), &decisions).components();
            (decisions, labels)
        });
        let decisions = &results[0].0;
        prop_assert!(results.iter().all(|result| &result.0 == decisions));
        let labels = open_confident_labels(&results.each_ref().map(|r| r.1.clone()), rows, classes);
        let labels = labels.expect("copies agree");
        for (row, counts) in votes_of(&scores, rows).iter().enumerate() {
            let largest = counts.iter().max().expect("a row has classes");
            prop_assert_eq!(decisions[row], largest + total(&on_maxima, row) >= i64::from(threshold));
            prop_assert_eq!(decisions[row], labels[row].is_some());
            if let Some(label) = labels[row] {
                let noised: Vec<i64> = (0..classes)
                    .map(|class| counts[class] + total(&on_counts, row * classes + class))
                    .collect();
                let best = noised.iter().max().expect("a row has classes");
                prop_assert_eq!(Some(label), noised.iter().position(|v| v == best));
            }
        }
    }

    /// Neighbouring ensembles, where `changed` models are replaced by whatever their owner likes,
    /// scores that overflow every window included: each model moves the counts by one vote (L1 by
    /// two, a bin by one) and the maximum by one. This is what one privacy unit is charged for:
    /// one model for the unit `record`, all models of an owner for the unit `owner`.
    #[test]
    fn replaced_models_move_counts_and_maximum_by_one_vote_each(
        seed: u64, models in 1usize..8, rows in 1usize..20, classes in 2usize..6, changed in 1usize..4,
    ) {
        let changed = changed.min(models);
        let mut random = Random(seed);
        let mut before: Array2<Z64> = matrix(models * rows, classes, || random.signed(20));
        // Some models of the first ensemble break the windows as well.
        let spoil = |scores: &mut Array2<Z64>, model: usize, random: &mut Random| {
            for row in model * rows..(model + 1) * rows {
                for class in 0..classes {
                    scores[(row, class)] = match random.word() % 4 {
                        0 => Z64::from_unsigned(random.word()),
                        1 => Z64::from_signed(i64::MIN),
                        2 => Z64::from_signed(i64::MAX),
                        _ => Z64::from_signed(random.signed(40)),
                    };
                }
            }
        };
        if seed % 2 == 0 {
            spoil(&mut before, models - 1, &mut random);
        }
        let mut after = before.clone();
        (0..changed).for_each(|model| spoil(&mut after, model, &mut random));
        let on_counts = noise(&mut random, rows * classes, 8);
        let on_maxima = noise(&mut random, rows, 8);
        let first = open(seed, &before, models, &on_counts, &on_maxima);
        let second = open(seed.wrapping_add(1), &after, models, &on_counts, &on_maxima);
        let changed = changed as i64;
        for row in 0..rows {
            let moved: Vec<i64> = (row * classes..(row + 1) * classes)
                .map(|place| second.counts[place] - first.counts[place])
                .collect();
            let (l1, l2): (i64, i64) = (moved.iter().map(|m| m.abs()).sum(), moved.iter().map(|m| m * m).sum());
            prop_assert!(l1 <= 2 * changed, "L1 {} for {} models", l1, changed);
            prop_assert!(l2 <= 2 * changed * changed, "squared L2 {} for {} models", l2, changed);
            prop_assert!(moved.iter().all(|m| m.abs() <= changed), "a bin moved by {:?}", moved);
            let moved = second.maxima[row] - first.maxima[row];
            prop_assert!(moved.abs() <= changed, "the maximum moved by {} for {} models", moved, changed);
        }
    }
}

/// The bound of the test above is tight: a model that changes its vote does move the maximum by one
/// and the counts by two, so a declared sensitivity below that would be noticed.
#[test]
fn the_bound_on_what_a_model_moves_is_reached() {
    let scores = |first: i64| -> Array2<Z64> {
        Array2::from_shape_vec((2, 2), [first, -first, 1, -1].map(Z64::from_signed).to_vec()).expect("2 x 2")
    };
    let (on_counts, on_maxima) = ([0; 3].map(|_| vec![0; 2]), [0; 3].map(|_| vec![0]));
    let first = open(1, &scores(1), 2, &on_counts, &on_maxima);
    let second = open(2, &scores(-1), 2, &on_counts, &on_maxima);
    assert_eq!((first.counts, first.maxima), (vec![2, 0], vec![2]));
    assert_eq!((second.counts, second.maxima), (vec![1, 1], vec![1]));
}

/// Flips a bit of what one party receives from its next neighbour when decisions are opened.
struct Flipping(LocalChannel, bool);

impl Channel for Flipping {
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError> {
        self.0.send(to, address, payload)
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError> {
        let mut payload = self.0.receive(from, address)?.to_vec();
        if self.1 && address.step.protocol == Protocol::DecisionOpening && from == Neighbour::Next {
            payload[0] ^= 1;
        }
        Ok(payload.into())
    }
}

/// Decides on five rows of three models, all for class 1, with a threshold of two.
fn decide<C: Channel>(party: &mut Party<C>, parts: &[Shares<Z64>; 3]) -> Result<Vec<bool>, MpcError> {
    let dealer = PartyIndex::ALL[0];
    let winners = votes::one_hot_argmax(party, dealer, &parts[party.index().number()], 32)?;
    let counts = sum_bits::<Z64, _>(party, dealer, &winners, 3, 5)?.reshare(party)?;
    let noised = counts.maximum(party, dealer)?.inject(party, &[0, 0, -1, -1, 0])?;
    noised.at_least(party, dealer, 2, 32)?.open_among_servers(party)
}

#[test]
fn servers_that_open_different_bits_notice() {
    let scores: Array2<Z64> =
        Array2::from_shape_fn((15, 3), |(_, class)| Z64::from_unsigned(u64::from(class == 1)));
    let parts = share(seed(), &scores);
    for faulty in [None, Some(0), Some(1), Some(2)] {
        let mut place = 0;
        let channels = LocalChannel::triple().map(|channel| {
            place += 1;
            Flipping(channel, Some(place - 1) == faulty)
        });
        let results = run_with(3, channels, |party| decide(party, &parts));
        for (place, (result, _)) in results.into_iter().enumerate() {
            match result {
                Ok(decisions) => {
                    assert_ne!(Some(place), faulty);
                    assert_eq!(decisions, [true, true, false, false, true]);
                }
                Err(error) => {
                    assert_eq!(Some(place), faulty);
                    assert!(matches!(error, MpcError::Inconsistent { .. }), "{error}");
                }
            }
        }
    }
}

#[test]
fn a_paused_session_goes_on_where_it_was() {
    let scores: Array2<Z64> =
        Array2::from_shape_fn((15, 3), |(_, class)| Z64::from_unsigned(u64::from(class == 1)));
    let parts = share(7, &scores);
    let straight = run(7, |party| (decide(party, &parts).expect("local"), party.traffic().clone()));
    let paused = std::thread::scope(|scope| {
        let parts = &parts;
        let parties = PartyIndex::ALL.into_iter().zip(LocalChannel::triple());
        let threads: Vec<_> = parties
            .zip(concilium_mpc::local::keys_from_seed(7))
            .map(|((index, channel), keys)| {
                scope.spawn(move || {
                    let mut party = Party::new(index, 7, &keys, channel);
                    let winners =
                        votes::one_hot_argmax(&mut party, PartyIndex::ALL[0], &parts[index.number()], 32);
                    let (paused, channel) = party.pause();
                    let mut party = paused.resume(channel);
                    let dealer = PartyIndex::ALL[0];
                    let sums = sum_bits::<Z64, _>(&mut party, dealer, &winners.expect("local"), 3, 5);
                    let counts = sums.and_then(|sums| sums.reshare(&mut party)).expect("local");
                    let noised = counts.maximum(&mut party, dealer).expect("local");
                    let noised = noised.inject(&mut party, &[0, 0, -1, -1, 0]).expect("local");
                    let decisions = noised.at_least(&mut party, dealer, 2, 32).expect("local");
                    let (paused, channel) = party.pause();
                    let mut party = paused.resume(channel);
                    let opened = decisions.open_among_servers(&mut party).expect("local");
                    (opened, party.traffic().clone())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no party panics")).collect::<Vec<_>>()
    });
    assert_eq!(paused, straight);
}
