//! Noise is independent between bins, releases and servers, and how long a request waits for it says
//! nothing about it.

use std::{
    hint::black_box,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use concilium_privacy::{Mechanism, NoisePool, NoiseSource, OpenDpNoise};

/// Standard errors at which a correlation is refused: by chance once in 1.7 million comparisons, and
/// there are eight of values.
const STANDARD_ERRORS: f64 = 5.0;

fn gaussian() -> Mechanism {
    Mechanism::DiscreteGaussian { sigma: "5".parse().expect("a number") }
}

fn laplace() -> Mechanism {
    Mechanism::DiscreteLaplace { scale: "5".parse().expect("a number") }
}

/// Correlation of two series, in standard errors of that of independent ones.
fn correlation(first: &[f64], second: &[f64]) -> f64 {
    let count = first.len() as f64;
    let mean = |series: &[f64]| series.iter().sum::<f64>() / count;
    let (a, b) = (mean(first), mean(second));
    let covariance: f64 = first.iter().zip(second).map(|(x, y)| (x - a) * (y - b)).sum();
    let spread = |series: &[f64], mean: f64| series.iter().map(|x| (x - mean).powi(2)).sum::<f64>().sqrt();
    covariance / (spread(first, a) * spread(second, b)) * count.sqrt()
}

fn values(source: &mut OpenDpNoise, rows: usize, bins: usize) -> Vec<f64> {
    (0..rows)
        .flat_map(|_| {
            source.draw(bins).expect("noise").values().iter().map(|&x| x as f64).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn bins_releases_and_servers_are_independent() {
    const BINS: usize = 4;
    for mechanism in [gaussian(), laplace()] {
        let mut servers = [(); 3].map(|()| OpenDpNoise::new(mechanism).expect("allowed"));
        let [a, b, c] = servers.each_mut().map(|server| values(server, 10_000, BINS));
        let squares = |series: &[f64]| series.iter().map(|x| x * x).collect::<Vec<_>>();
        for (what, first, second) in [
            ("neighbouring bins", &a[1..], &a[..a.len() - 1]),
            ("successive releases", &a[BINS..], &a[..a.len() - BINS]),
            ("servers 0 and 1", &a[..], &b[..]),
            ("servers 1 and 2", &b[..], &c[..]),
        ] {
            for (kind, found) in [
                ("values", correlation(first, second)),
                ("squares", correlation(&squares(first), &squares(second))),
            ] {
                eprintln!("{mechanism:?}, {what}, {kind}: {found:+.2} standard errors");
                // Squares of heavy tails are less regular: a wider bound, still far from the controls.
                let bound = if kind == "values" { STANDARD_ERRORS } else { 2.0 * STANDARD_ERRORS };
                assert!(found.abs() < bound, "{what}, {kind}: {found}");
            }
        }
        // A tenth of the releases take another one's noise; a server sends another one's share.
        let reused: Vec<f64> = a
            .iter()
            .zip(&b)
            .enumerate()
            .map(|(index, (x, y))| if index % 10 == 0 { *x } else { *y })
            .collect();
        assert!(correlation(&a, &reused).abs() > STANDARD_ERRORS, "reuse goes unnoticed");
        assert!(correlation(&a, &a.clone()).abs() > STANDARD_ERRORS, "the same noise goes unnoticed");
    }
}

/// Ranks, ties sharing their mean: one late wake-up of the machine then counts as one.
fn ranks(series: &[u64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..series.len()).collect();
    order.sort_unstable_by_key(|&index| series[index]);
    let mut ranks = vec![0.0; series.len()];
    for group in order.chunk_by(|&a, &b| series[a] == series[b]) {
        let first = order.partition_point(|&index| series[index] < series[group[0]]);
        let rank = first as f64 + (group.len() - 1) as f64 / 2.0;
        group.iter().for_each(|&index| ranks[index] = rank);
    }
    ranks
}

/// The wait for noise from a pool does not tell its magnitude: a correlation of ranks below 0.01, which is
/// 6.3 standard errors and comes by chance once in 3 * 10^9 runs. That of a draw does, which shows that
/// the measurement would.
#[test]
fn the_wait_for_noise_tells_nothing_about_it() {
    const DRAWS: usize = 400_000;
    const DIRECT_DRAWS: usize = 100_000;
    let measured = |draws: usize, take: &mut dyn FnMut() -> u64| {
        let (mut times, mut magnitudes) = (Vec::with_capacity(draws), Vec::with_capacity(draws));
        for _ in 0..draws {
            let begin = Instant::now();
            let magnitude = black_box(take());
            times.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
            magnitudes.push(magnitude);
        }
        correlation(&ranks(&times), &ranks(&magnitudes)) / (draws as f64).sqrt()
    };
    let mut source = OpenDpNoise::new(gaussian()).expect("allowed");
    let direct = measured(DIRECT_DRAWS, &mut || source.draw(1).expect("noise").values()[0].unsigned_abs());

    let capacity = NonZeroUsize::new(DRAWS).expect("not zero");
    let source = OpenDpNoise::new(gaussian()).expect("allowed");
    let pool = NoisePool::new(source, 1, capacity).expect("a pool");
    while pool.ready() < DRAWS {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pooled = measured(DRAWS, &mut || pool.take().expect("noise").values()[0].unsigned_abs());
    eprintln!("correlation of wait and magnitude: direct draws {direct:+.4}, pool {pooled:+.4}");
    assert!(pooled.abs() < 0.01, "waits tell about noise: correlation {pooled}");
    assert!(direct.abs() > 0.1, "the measurement notices nothing: correlation {direct}");
}
