//! Whole evaluations of shared models on shared inputs, from the shares of a query to the histogram of
//! votes without noise, with all three parties in this process.
//!
//! - W1: one perceptron 784-128-128-10, for one query and for 128.
//! - W2: fifty of them on one query; 250 show what another owner costs.
//! - W3: convolution 5x5 to 16 channels, maximum of 2x2, rectifier, the same again, 256-100-10.
//!
//! Before the timings, each workload's parts are printed: CPU time of all three parties together, and
//! the longest time that a party spent in the part, waiting included, both in ms for one evaluation.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use concilium_inference::{Ensemble, RingElement, histogram};
use concilium_mpc::local::{LocalChannel, run_with, share};
use concilium_mpc::{Address, Bytes, Channel, ChannelError, Neighbour, Progress, Shares, Stage};
use concilium_network::program::gather::{Gather, Piece};
use concilium_network::{Convolution, InputDomain, Network, Operation, Step, Weights, quantise};
use concilium_ring::{Z32, Z64};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use ndarray::{Array1, Array2, Array3};
use rustix::time::{ClockId, clock_gettime};
use support::{Random, ensembles, precision};

/// What is evaluated.
struct Workload<E: RingElement> {
    ensembles: [Ensemble<E>; 3],
    input: [Shares<E>; 3],
}

impl<E: RingElement> Workload<E> {
    fn new(owners: usize, queries: usize, network: fn(&mut Random) -> Network) -> Self {
        let mut random = Random(20_261_121);
        let domain = InputDomain::new(vec![784], vec![0.0], vec![1.0]).expect("the domain is sound");
        let precision = precision::<E>();
        let networks: Vec<_> = (0..owners)
            .map(|_| quantise(&network(&mut random), &domain, precision).expect("headroom is left"))
            .collect();
        let unit = f64::from(1 << precision.fractional_bits);
        let input = Array2::from_shape_simple_fn((queries, 784), || {
            E::from_signed((random.uniform(0.5) * unit + unit / 2.0) as i64)
        });
        Workload { ensembles: ensembles(1, &networks), input: share(2, &input) }
    }

    /// Time of `repeats` evaluations, one after the other, and what the parties measured of it.
    fn time(&self, repeats: u64) -> (Duration, Vec<Parts>) {
        let barrier = Barrier::new(3);
        let results = run_with(1, LocalChannel::triple().map(Timed::new), |party| {
            let place = party.index().number();
            let mut total = Duration::ZERO;
            for _ in 0..repeats {
                barrier.wait();
                let begin = Instant::now();
                black_box(histogram(party, &self.ensembles[place], &self.input[place]).expect("local"));
                party.enter(Stage::Opening);
                barrier.wait();
                total += begin.elapsed();
            }
            total
        });
        let longest = results.iter().map(|(total, _)| *total).max().expect("there are three parties");
        (longest, results.into_iter().map(|(_, channel)| channel.parts).collect())
    }

    fn print_parts(&self, name: &str) {
        const REPEATS: u64 = 20;
        self.time(3);
        let (total, parties) = self.time(REPEATS);
        let each = |time: Duration| time.as_secs_f64() * 1e3 / REPEATS as f64;
        println!("{name}: {:.3} ms", each(total));
        for part in ["linear", "comparison", "selection", "votes"] {
            let times = || parties.iter().filter_map(|parts| parts.get(part));
            let cpu: f64 = times().map(|&(cpu, _)| each(cpu)).sum();
            let longest = times().map(|&(_, elapsed)| each(elapsed)).fold(0.0, f64::max);
            println!("  {part:<12} {cpu:>9.3} ms CPU {longest:>9.3} ms longest");
        }
    }
}

/// CPU and elapsed time by part.
type Parts = BTreeMap<&'static str, (Duration, Duration)>;

/// Links that add up the time of each part.
struct Timed {
    channel: LocalChannel,
    parts: Parts,
    now: (&'static str, Duration, Instant),
}

impl Timed {
    fn new(channel: LocalChannel) -> Self {
        Timed { channel, parts: Parts::new(), now: (Stage::Opening.name(), Duration::ZERO, Instant::now()) }
    }
}

/// CPU time of this thread so far.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Channel for Timed {
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError> {
        self.channel.send(to, address, payload)
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError> {
        self.channel.receive(from, address)
    }

    fn note_progress(&mut self, progress: Progress) {
        let (part, spent, since) = self.now;
        if part == progress.stage.name() {
            return;
        }
        let (now, here) = (Instant::now(), cpu());
        let sums = self.parts.entry(part).or_default();
        sums.0 += here.saturating_sub(spent);
        sums.1 += now - since;
        self.now = (progress.stage.name(), here, now);
    }
}

fn affine(random: &mut Random, input: usize, operation: Operation) -> Step {
    let ([groups, inner, outer], biases) = operation.weights().expect("the operation has weights");
    let magnitude = (3.0 / inner as f64).sqrt();
    let weights = Weights {
        matrices: Array3::from_shape_simple_fn((groups, inner, outer), || random.uniform(magnitude)),
        bias: Array1::from_shape_simple_fn(biases, || random.uniform(0.1)),
    };
    Step { name: String::new(), inputs: vec![input], operation, weights: Some(weights) }
}

fn plain(inputs: &[usize], operation: Operation) -> Step {
    Step::plain("", inputs.to_vec(), operation)
}

fn perceptron(random: &mut Random) -> Network {
    let dense = |inputs, outputs| Operation::Dense { inputs, outputs };
    let steps = vec![
        affine(random, 0, dense(784, 128)),
        plain(&[1], Operation::Relu),
        affine(random, 2, dense(128, 128)),
        plain(&[3], Operation::Relu),
        affine(random, 4, dense(128, 10)),
    ];
    Network::new(vec![784], steps).expect("the sizes fit")
}

/// Adds the maximum of 2 x 2 of the last value, 16 channels of `side` x `side`, as import does: along the
/// width, then along the height.
fn maximum(steps: &mut Vec<Step>, side: usize) {
    for (height, width) in [(side, side / 2), (side / 2, side / 2)] {
        let value = steps.len();
        let distance = if height == side { 1 } else { side / 2 };
        for tap in 0..2 {
            let place = |index: usize| {
                let (channel, row, column) =
                    (index / (height * width), index / width % height, index % width);
                let start = if height == side {
                    (channel * side + row) * side + 2 * column
                } else {
                    (channel * side + 2 * row) * width + column
                };
                Some(start + tap * distance)
            };
            let places: Vec<_> = (0..16 * height * width).map(place).collect();
            let piece = Piece::of_places(&[16, height, width], &places).expect("the axes add up");
            steps.push(plain(&[value], Operation::Gather(Gather { pieces: vec![piece] })));
        }
        steps.push(plain(&[value + 1, value + 2], Operation::Maximum));
    }
}

fn convolutional(random: &mut Random) -> Network {
    let convolution = |channels, side| {
        Operation::Convolution(Convolution {
            channels: [channels, 16],
            groups: 1,
            size: [side; 2],
            kernel: [5; 2],
            strides: [1; 2],
            dilations: [1; 2],
            pads: [0; 4],
        })
    };
    let mut steps = Vec::new();
    for (channels, side) in [(1, 28), (16, 12)] {
        steps.push(affine(random, steps.len(), convolution(channels, side)));
        maximum(&mut steps, side - 4);
        steps.push(plain(&[steps.len()], Operation::Relu));
    }
    steps.push(affine(random, steps.len(), Operation::Dense { inputs: 256, outputs: 100 }));
    steps.push(plain(&[steps.len()], Operation::Relu));
    steps.push(affine(random, steps.len(), Operation::Dense { inputs: 100, outputs: 10 }));
    Network::new(vec![1, 28, 28], steps).expect("the sizes fit")
}

fn evaluations(criterion: &mut Criterion) {
    type Make = fn(&mut Random) -> Network;
    let workloads: [(&str, usize, usize, Make); 6] = [
        ("W1, 1 query", 1, 1, perceptron),
        ("W1, 128 queries", 1, 128, perceptron),
        ("W2, 50 owners", 50, 1, perceptron),
        ("W2, 250 owners", 250, 1, perceptron),
        ("W3, 1 query", 1, 1, convolutional),
        ("W3, 32 queries", 1, 32, convolutional),
    ];
    let mut group = criterion.benchmark_group("histogram");
    group.sample_size(20);
    for (name, owners, queries, network) in workloads {
        measure::<Z64>(&mut group, name, (owners, queries), network);
        measure::<Z32>(&mut group, &format!("{name}, 32 bits"), (owners, queries), network);
    }
    group.finish();
}

fn measure<E: RingElement>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    (owners, queries): (usize, usize),
    network: fn(&mut Random) -> Network,
) {
    // Only what is asked for on the command line is prepared.
    let prepared = LazyCell::new(|| {
        let workload = Workload::<E>::new(owners, queries, network);
        workload.print_parts(name);
        workload
    });
    group.bench_function(name, |bencher| {
        let workload = &*prepared;
        bencher.iter_custom(|repeats| workload.time(repeats).0);
    });
}

criterion_group!(benches, evaluations);
criterion_main!(benches);
