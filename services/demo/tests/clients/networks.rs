//! Convolutional networks through three server processes: one of LeNet's size, and a residual one.
//!
//! One owner shares the same network several times, so that all votes go to one class and the noise cannot
//! hide it: with 30 votes and noise of at most 2.45 standard deviations a bin, the difference of two bins
//! is 8.6 standard deviations away from zero, and all rows together miss with odds below 10^-14.

use std::time::Duration;

use concilium_client_library::{Connection, Predictor};
use concilium_demo::cluster::{Cluster, ServerProgram};
use concilium_network::{Convolution, Network, Operation, Step, Weights};
use concilium_owner::{ShareOptions, share_model};
use concilium_rpc::identity::Role;
use ndarray::{Array1, Array2, Array3};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::support;

/// How often a network is shared.
const VOTES: usize = 30;
/// Rows of a request.
const ROWS: usize = 3;

fn seed() -> u64 {
    let seed = std::env::var("CONCILIUM_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5);
    eprintln!("CONCILIUM_TEST_SEED={seed}");
    seed
}

/// A network that is built step by step.
struct Builder {
    random: StdRng,
    /// Of the weights, as a part of what keeps the size of values.
    gain: f64,
    steps: Vec<Step>,
}

impl Builder {
    fn push(&mut self, step: Step) -> usize {
        self.steps.push(step);
        self.steps.len()
    }

    fn weighted(&mut self, input: usize, operation: Operation) -> usize {
        let ([groups, inner, outer], biases) = operation.weights().expect("it has weights");
        // With gain 1 of variance 2 / inner (He et al. 2015).
        let width = self.gain * (6.0 / inner as f64).sqrt();
        let mut draw = |width: f64| width * (2.0 * self.random.random::<f64>() - 1.0);
        let weights = Weights {
            matrices: Array3::from_shape_simple_fn((groups, inner, outer), || draw(width)),
            bias: Array1::from_shape_simple_fn(biases, || draw(0.1)),
        };
        let step = Step { name: String::new(), inputs: vec![input], operation, weights: Some(weights) };
        self.push(step)
    }

    fn convolution(&mut self, input: usize, convolution: Convolution) -> usize {
        self.weighted(input, Operation::Convolution(convolution))
    }

    fn plain(&mut self, inputs: &[usize], operation: Operation) -> usize {
        self.push(Step::plain("", inputs.to_vec(), operation))
    }

    fn dense(&mut self, input: usize, inputs: usize, outputs: usize) -> usize {
        self.weighted(input, Operation::Dense { inputs, outputs })
    }
}

/// Windows of `kernel` by `kernel` over square images.
fn square(channels: [usize; 2], side: usize, kernel: usize, stride: usize, pad: usize) -> Convolution {
    Convolution {
        channels,
        groups: 1,
        size: [side; 2],
        kernel: [kernel; 2],
        strides: [stride; 2],
        dilations: [1; 2],
        pads: [pad; 4],
    }
}

/// Sums of two by two windows, channel by channel; the layer after it scales them.
fn pooled(channels: usize, side: usize) -> Operation {
    Operation::Sum(Convolution { groups: channels, ..square([channels; 2], side, 2, 2, 0) })
}

/// Convolutions 5x5 1-16 and 16-16, each with a pool behind, and 256-100-10.
fn lenet(seed: u64) -> Network {
    let mut builder = Builder { random: StdRng::seed_from_u64(seed), gain: 1.0, steps: Vec::new() };
    let first = builder.convolution(0, square([1, 16], 28, 5, 1, 0));
    let first = builder.plain(&[first], Operation::Relu);
    let first = builder.plain(&[first], pooled(16, 24));
    let second = builder.convolution(first, square([16, 16], 12, 5, 1, 0));
    let second = builder.plain(&[second], Operation::Relu);
    let second = builder.plain(&[second], pooled(16, 8));
    let third = builder.dense(second, 256, 100);
    let third = builder.plain(&[third], Operation::Relu);
    builder.dense(third, 100, 10);
    Network::new(vec![1, 28, 28], builder.steps).unwrap_or_else(|error| panic!("{error}"))
}

/// A convolution, five blocks of two with a sum around each, and one that halves the image: 12 convolutions.
fn residual(seed: u64) -> Network {
    const CHANNELS: usize = 4;
    // Small weights: the range analysis takes the worst of every layer together, and there are many.
    let mut builder = Builder { random: StdRng::seed_from_u64(seed ^ 1), gain: 0.25, steps: Vec::new() };
    let mut value = builder.convolution(0, square([1, CHANNELS], 28, 3, 2, 1));
    value = builder.plain(&[value], Operation::Relu);
    let mut side = 14;
    for block in 0..5 {
        if block == 2 {
            value = builder.convolution(value, square([CHANNELS; 2], side, 3, 2, 1));
            side = 7;
        }
        let inner = builder.convolution(value, square([CHANNELS; 2], side, 3, 1, 1));
        let inner = builder.plain(&[inner], Operation::Relu);
        let inner = builder.convolution(inner, square([CHANNELS; 2], side, 3, 1, 1));
        let sum = builder.plain(&[inner, value], Operation::Combine { coefficients: vec![1, 1] });
        value = builder.plain(&[sum], Operation::Relu);
    }
    builder.dense(value, CHANNELS * side * side, 10);
    let convolutions =
        builder.steps.iter().filter(|step| matches!(step.operation, Operation::Convolution(_)));
    assert_eq!(convolutions.count(), 12);
    Network::new(vec![1, 28, 28], builder.steps).unwrap_or_else(|error| panic!("{error}"))
}

fn task(name: &str, fractional_bits: u32) -> String {
    format!(
        "[tasks.{name}]\nepoch = 1\ninput_shape = [1, 28, 28]\ninput_minimum = 0.0\ninput_maximum = 1.0\n\
         fractional_bits = {fractional_bits}\nclasses = 10\nrelease = \"histogram\"\nsigma = 2\n\
         budget_rho = 100\ndelta = 1e-5\nrequest_rows = 8\nmodels_per_owner = {VOTES}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn convolutional_networks_vote_as_they_do_in_the_clear() {
    let seed = seed();
    let networks = [("lenet", lenet(seed)), ("residual", residual(seed))];
    let domain =
        concilium_network::InputDomain::new(vec![1, 28, 28], vec![0.0], vec![1.0]).expect("a domain");
    let tasks: String = networks
        .iter()
        .map(|(name, network)| {
            let bits = concilium_network::choose_fractional_bits(
                concilium_network::Ring::Bits64,
                [network],
                &domain,
            );
            let bits = bits.unwrap_or_else(|error| panic!("{name}: {error}"));
            eprintln!("{name}: {} parameters, {bits} fractional bits", network.parameter_count());
            task(name, bits)
        })
        .collect();
    let programs = support::programs(&["concilium-server"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = ServerProgram {
        path: programs.join("concilium-server"),
        arguments: Vec::new(),
        ends_with_input: false,
    };
    let mut cluster = Cluster::start(folder.path(), server, [&tasks; 3], "").expect("servers start");
    cluster.wait_until_ready(Duration::from_secs(120)).await.expect("servers connect");
    let connect = |role, name| {
        Connection::open(&cluster.member(role, name).expect("a certificate is issued")).expect("it is good")
    };
    let (owner, client) = (connect(Role::Owner, "ward"), connect(Role::Client, "alice"));
    let mut random = StdRng::seed_from_u64(seed ^ 2);
    // A bright stripe at another place in each row.
    let rows = Array2::from_shape_fn((ROWS, 784), |(row, pixel)| {
        let bright = (9 * row..9 * row + 9).contains(&(pixel / 28));
        random.random::<f64>() * if bright { 1.0 } else { 0.1 }
    });
    for (name, network) in &networks {
        let shared_for = owner.task(name).await.expect("the task is served");
        for vote in 0..VOTES {
            let model = format!("{name}-{vote}");
            share_model(&owner, &shared_for, &model, network, &ShareOptions::default())
                .await
                .unwrap_or_else(|error| panic!("{error}"));
        }
        let task = client.task(name).await.expect("the task is served");
        let answers = Predictor::new(&client, task).predict(rows.view(), |_| {}).await;
        let answers = answers.unwrap_or_else(|error| panic!("{error}"));
        let labels: Vec<_> = answers.iter().flat_map(|answer| answer.released.labels()).flatten().collect();
        assert_eq!(labels, network.votes(rows.view()).to_vec(), "{name}");
        eprintln!("{name}: {labels:?} in {:?}", answers[0].timing.latency);
    }
}
