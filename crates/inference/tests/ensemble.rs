//! Many owners' networks under MPC against the fixed-point oracle, on three parties in one process.

mod support;

use concilium_inference::{
    Ensemble, EnsembleError, ModelError, PreparedModel, RingElement, SharedModel, histogram, logits,
    probabilities,
};
use concilium_mpc::input::Component;
use concilium_mpc::local::{LocalChannel, reconstruct, run, run_with};
use concilium_mpc::opening::open_sums;
use concilium_mpc::probability::{FRACTION_BITS, maximum_error};
use concilium_mpc::release::Aggregate;
use concilium_mpc::{
    Address, Bytes, Channel, ChannelError, MpcError, Neighbour, Party, Progress, Shares, Stage, Traffic,
};
use concilium_network::{Ring, Rounding};
use concilium_ring::{Element, Z32, Z64};
use ndarray::{Array2, s};
use proptest::prelude::*;
use support::{FRACTIONAL_BITS, World, check_every_step, perceptron, precision, world_of};

/// A world of perceptrons of these shapes.
fn world<E: RingElement>(seed: u64, shapes: &[Vec<usize>], rows: usize) -> World<E> {
    world_of(seed, shapes.len(), shapes[0][0], rows, |random, owner| perceptron(random, &shapes[owner]))
}

/// Owners of different hidden sizes and depths.
fn shapes() -> impl Strategy<Value = Vec<Vec<usize>>> {
    (1usize..7, 2usize..5).prop_flat_map(|(features, classes)| {
        prop::collection::vec(prop::collection::vec(1usize..9, 0..4), 1..6).prop_map(move |hidden| {
            let sizes = |hidden: Vec<usize>| [vec![features], hidden, vec![classes]].concat();
            hidden.into_iter().map(sizes).collect()
        })
    })
}

/// What an aggregate of an ensemble's models is computed by.
type Aggregation<E> =
    fn(&mut Party<LocalChannel>, &Ensemble<E>, &Shares<E>) -> Result<Aggregate<Z64>, MpcError>;

/// The logits, and `count` sums of them by `aggregation` without noise. Both runs have the same session and
/// keys, hence the same rounding of every value.
fn logits_and_sums<E: RingElement>(
    seed: u64,
    world: &World<E>,
    count: usize,
    aggregation: Aggregation<E>,
) -> (Array2<i64>, Vec<i64>) {
    let logits = reconstruct(&run(seed, |party| {
        let place = party.index().number();
        logits(party, &world.ensembles[place], &world.shares[place]).expect("local")
    }));
    let logits = logits.mapv(|logit| logit.to_signed_modulo(precision::<E>().known_bits()));
    let parts = run(seed, |party| {
        let place = party.index().number();
        let sums = aggregation(party, &world.ensembles[place], &world.shares[place]).expect("local");
        sums.inject(party, &vec![0; count]).expect("local").components()
    });
    (logits, open_sums(&parts, count).expect("copies agree"))
}

/// The histogram is that of the largest logits.
fn check_histogram<E: RingElement>(seed: u64, world: &World<E>) -> Result<(), TestCaseError> {
    let (rows, classes) = (world.input.nrows(), world.ensembles[0].classes());
    let (logits, counts) = logits_and_sums(seed, world, rows * classes, histogram);
    let mut expected = vec![0; rows * classes];
    for (row, line) in logits.rows().into_iter().enumerate() {
        let best = *line.iter().max().expect("there are classes");
        let winner = line.iter().position(|&v| v == best).expect("the maximum is there");
        expected[row % rows * classes + winner] += 1;
    }
    prop_assert_eq!(counts, expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_step_is_what_truncation_allows(seed: u64, shapes in shapes(), rows in 1usize..4) {
        let world = world::<Z64>(seed, &shapes, rows);
        let World { networks, ensembles, input, shares } = &world;
        check_every_step(seed, networks, ensembles, input, shares).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn every_step_in_the_ring_of_32_bits_is_what_truncation_allows(
        seed: u64, shapes in shapes(), rows in 1usize..4,
    ) {
        let world = world::<Z32>(seed, &shapes, rows);
        let World { networks, ensembles, input, shares } = &world;
        check_every_step(seed, networks, ensembles, input, shares).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn histograms_count_the_votes_of_the_logits(seed: u64, shapes in shapes(), rows in 1usize..5) {
        check_histogram(seed, &world::<Z64>(seed, &shapes, rows))?;
        check_histogram(seed, &world::<Z32>(seed, &shapes, rows))?;
    }

    #[test]
    fn probabilities_add_up_the_softmax_of_the_logits(seed: u64, shapes in shapes(), rows in 1usize..5) {
        let world = world::<Z64>(seed, &shapes, rows);
        let classes = *shapes[0].last().expect("shapes have sizes");
        let (logits, sums) = logits_and_sums(seed, &world, rows * classes, probabilities);
        let mut expected = vec![0.0; rows * classes];
        for (row, line) in logits.rows().into_iter().enumerate() {
            let real: Vec<f64> =
                line.iter().map(|&v| v as f64 / f64::from(1 << FRACTIONAL_BITS)).collect();
            let largest = real.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = real.iter().map(|v| (v - largest).exp()).sum();
            for (class, value) in real.into_iter().enumerate() {
                expected[row % rows * classes + class] += (value - largest).exp() / total;
            }
        }
        let bound = shapes.len() as f64 * maximum_error(classes);
        for (sum, expected) in sums.into_iter().zip(expected) {
            let error = (sum as f64 / f64::from(1 << FRACTION_BITS) - expected).abs();
            prop_assert!(error <= bound, "{} models are off by {}", shapes.len(), error);
        }
    }
}

/// What mean probabilities cost beside a histogram, for fifty owners of ten classes: the figures of
/// `docs/protocols.md`, printed with the times of this machine.
#[test]
fn probabilities_cost_little_more_than_votes() {
    let world = world::<Z64>(21, &vec![vec![64, 32, 10]; 50], 1);
    let [histogram, probabilities] = [false, true].map(|with_probabilities| {
        let begin = std::time::Instant::now();
        let traffic = run(5, |party| {
            let (ensemble, input) =
                (&world.ensembles[party.index().number()], &world.shares[party.index().number()]);
            let sums = if with_probabilities {
                probabilities(party, ensemble, input)
            } else {
                histogram(party, ensemble, input)
            };
            sums.expect("local").inject(party, &[0; 10]).expect("local");
            party.traffic().clone()
        });
        let bytes: u64 = traffic.iter().map(|traffic| traffic.bytes_sent).sum();
        println!("{} rounds, {bytes} bytes, {:?}", traffic[0].rounds, begin.elapsed());
        (traffic[0].rounds, bytes)
    });
    assert_eq!(probabilities.0 - histogram.0, 11, "rounds");
    assert!(probabilities.1 < 3 * histogram.1, "{} bytes against {}", probabilities.1, histogram.1);
}

#[test]
fn logits_stay_within_the_proven_bound_of_exact_arithmetic() {
    let shapes = vec![vec![20, 16, 8, 5]; 3];
    let world = world::<Z64>(7, &shapes, 6);
    let logits = reconstruct(&run(7, |party| {
        let place = party.index().number();
        logits(party, &world.ensembles[place], &world.shares[place]).expect("local")
    }));
    let unit = (-f64::from(FRACTIONAL_BITS)).exp2();
    for (owner, network) in world.networks.iter().enumerate() {
        let oracle = network.evaluate(world.input.view(), Rounding::Nearest);
        let mine = logits.slice(s![owner * 6..(owner + 1) * 6, ..]);
        for (secure, plain) in mine.iter().zip(&oracle) {
            let difference = (secure.to_signed() - plain).abs() as f64 * unit;
            assert!(difference <= 2.0 * network.error_bound(), "owner {owner}: off by {difference}");
        }
    }
}

/// Traffic of server 0 for a label of every row.
fn traffic<E: RingElement>(world: &World<E>, owners: std::ops::Range<usize>) -> Traffic {
    let rows = world.input.nrows();
    let [traffic, ..] = run(3, |party| {
        let place = party.index().number();
        let all = &world.ensembles[place];
        let models = all.models()[owners.clone()].to_vec();
        let some =
            Ensemble::new(models, all.features(), all.classes(), all.fractional_bits()).expect("a part fits");
        let sums = histogram(party, &some, &world.shares[place]).expect("local");
        let noised = sums.inject(party, &vec![0; rows * all.classes()]).expect("local");
        noised.argmax(party, concilium_mpc::PartyIndex::ALL[0], 32).expect("local");
        party.traffic().clone()
    });
    traffic
}

/// Fifty owners take as many rounds as the one among them with the widest comparison windows takes
/// alone, and a batch as many as one query.
#[test]
fn rounds_do_not_depend_on_owners_or_queries() {
    // Hidden sizes differ between owners.
    let shapes: Vec<_> = (0..50).map(|owner| vec![6, 5 + owner % 3, 4, 3]).collect();
    let of_rows = |rows| world::<Z64>(3, &shapes, rows);
    let (single, batch) = (of_rows(1), of_rows(70));
    let alone: Vec<u32> = (0..50).map(|owner| traffic(&single, owner..owner + 1).rounds).collect();
    let slowest = *alone.iter().max().expect("there are owners");
    println!("rounds for a label of a network with two hidden layers: {alone:?}");
    for (name, world) in [("one query", &single), ("seventy queries", &batch)] {
        let all = traffic(world, 0..50);
        assert_eq!(all.rounds, slowest, "fifty owners, {name}");
        assert!(all.bytes_sent > 10 * traffic(world, 0..1).bytes_sent);
    }
}

/// In the ring of 32 bits an evaluation takes no round more, and less than three quarters of the bytes.
#[test]
fn the_ring_of_32_bits_takes_no_more_rounds_and_fewer_bytes() {
    let shapes = vec![vec![20, 32, 32, 10]; 5];
    let wide = traffic(&world::<Z64>(3, &shapes, 7), 0..5);
    let narrow = traffic(&world::<Z32>(3, &shapes, 7), 0..5);
    println!("64 bits: {wide:?}, 32 bits: {narrow:?}");
    assert!(narrow.rounds <= wide.rounds, "{} rounds against {}", narrow.rounds, wide.rounds);
    assert!(4 * narrow.bytes_sent < 3 * wide.bytes_sent, "{narrow:?} against {wide:?}");
}

#[test]
fn models_that_do_not_fit_are_refused_by_name() {
    let world = world::<Z64>(5, &[vec![4, 3, 2], vec![4, 2]], 1);
    let models = world.ensembles[0].models().to_vec();
    let refusal = Ensemble::new(models.clone(), 4, 3, FRACTIONAL_BITS).err();
    assert_eq!(refusal, Some(EnsembleError::Differs { model: 0, what: "classes", expected: 3, found: 2 }));
    assert_eq!(Ensemble::<Z64>::new(vec![], 4, 2, FRACTIONAL_BITS).err(), Some(EnsembleError::Empty));
    let architecture = models[1].architecture().clone();
    let elements = vec![Z64::ZERO; 9];
    let refusal =
        SharedModel::new(architecture, &elements, &elements).err().expect("one parameter is missing");
    assert!(refusal.to_string().contains("holds 9 parameters, but the architecture has 10"), "{refusal}");
    let architecture = models[1].architecture().clone();
    let elements = vec![Z32::ZERO; 10];
    let refusal = SharedModel::new(architecture, &elements, &elements).err().expect("it is in another ring");
    assert_eq!(refusal, ModelError::Ring { expected: Ring::Bits32, found: Ring::Bits64 });
}

/// Components come from outside, with a length that need not be that of the ring.
#[test]
fn components_of_the_other_ring_are_refused() {
    let world = world::<Z32>(5, &[vec![4, 3, 2]], 1);
    let architecture = world.networks[0].architecture();
    let seed = Component::Seed([1; 32]);
    for (bytes, fits) in [(4 * 23, true), (8 * 23, false), (4 * 22, false)] {
        let prepared = PreparedModel::new(architecture.clone(), &seed, &Component::Data(vec![1; bytes]));
        assert_eq!(prepared.is_ok(), fits, "{bytes} bytes");
        if let Err(refusal) = prepared {
            assert!(refusal.to_string().contains("where 92 are due (23 elements of 4 bytes)"), "{refusal}");
        }
    }
    let prepared = PreparedModel::new(architecture, &seed, &Component::Data(vec![1; 92])).expect("it fits");
    let refusal = Ensemble::<Z64>::of_prepared([&prepared], 4, 2, 9).err().expect("another ring");
    assert!(
        refusal.to_string().contains("model 0 has 32 bits in its ring, but the task has 64"),
        "{refusal}"
    );
    assert!(Ensemble::<Z32>::of_prepared([&prepared], 4, 2, 9).is_ok());
}

/// Keeps what it is told of the session's progress.
struct Watched {
    channel: LocalChannel,
    told: Vec<Progress>,
}

impl Channel for Watched {
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError> {
        self.channel.send(to, address, payload)
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError> {
        self.channel.receive(from, address)
    }

    fn note_progress(&mut self, progress: Progress) {
        self.told.push(progress);
    }
}

#[test]
fn all_servers_tell_the_same_stages_and_rounds() {
    let world = world::<Z64>(11, &[vec![4, 6, 3], vec![4, 3], vec![4, 5, 5, 3]], 2);
    let channels = LocalChannel::triple().map(|channel| Watched { channel, told: Vec::new() });
    let watched = run_with(11, channels, |party| {
        let place = party.index().number();
        histogram(party, &world.ensembles[place], &world.shares[place]).expect("local links do not fail");
        party.traffic().rounds
    });
    let told = watched[0].1.told.clone();
    assert!(watched.iter().all(|(_, watched)| watched.told == told));
    let mut stages: Vec<_> = told.iter().map(|progress| progress.stage).collect();
    stages.dedup();
    let layer = |number| [Stage::Linear(number), Stage::Comparison(number), Stage::Selection(number)];
    let expected = [&layer(1)[..], &layer(2)[..], &[Stage::Linear(3), Stage::Votes]].concat();
    assert_eq!(stages, expected);
    assert!(told.windows(2).all(|pair| pair[0].round <= pair[1].round), "{told:?}");
    assert_eq!(told.last().map(|progress| progress.round), Some(watched[0].0));
}
