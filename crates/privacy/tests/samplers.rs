//! Every sampler against its exact distribution. The production source cannot be seeded, so its tests
//! fail by chance about once in 10^9 runs; the seeded twin's tests repeat exactly.

mod support;

use concilium_privacy::{Mechanism, NoiseScale, NoiseSource, OpenDpNoise, twin, twin::SeededNoise};
use support::{
    SIGNIFICANCE, seeded_rng,
    statistics::{Pmf, fit, mean_square},
};

const SAMPLES: usize = 200_000;
const BINS: usize = 1_000;

fn scale(text: &str) -> NoiseScale {
    text.parse().expect("a decimal number")
}

fn gaussian(sigma: &str) -> Mechanism {
    Mechanism::DiscreteGaussian { sigma: scale(sigma) }
}

fn laplace(width: &str) -> Mechanism {
    Mechanism::DiscreteLaplace { scale: scale(width) }
}

fn draw(source: &mut dyn NoiseSource) -> Vec<i64> {
    let mut samples = Vec::with_capacity(SAMPLES);
    while samples.len() < SAMPLES {
        let share = source.draw(BINS).expect("noise");
        assert_eq!(share.bins(), BINS);
        samples.extend_from_slice(share.values());
    }
    samples
}

fn sum(parts: &[&[i64]]) -> Vec<i64> {
    (0..parts[0].len()).map(|index| parts.iter().map(|part| part[index]).sum()).collect()
}

fn assert_fits(what: &str, samples: &[i64], pmf: &Pmf) {
    let p = fit(samples, pmf);
    eprintln!("{what}: p = {p:.3e}");
    assert!(p > SIGNIFICANCE, "{what}: p = {p:.3e}");

    let error = pmf.variance_error(samples.len());
    let distance = (mean_square(samples) - pmf.variance()) / error;
    eprintln!("{what}: variance off by {distance:+.2} standard errors");
    assert!(distance.abs() < 6.0, "{what}: variance off by {distance:+.2} standard errors");
}

fn assert_does_not_fit(what: &str, samples: &[i64], pmf: &Pmf) {
    let p = fit(samples, pmf);
    eprintln!("negative control, {what}: p = {p:.3e}");
    assert!(p < SIGNIFICANCE, "the test does not notice: {what}, p = {p:.3e}");
}

/// One server's share, and the sums of two and of three servers' shares. `share` and `two` are the
/// wanted distributions; three servers must add up to the sum of the two.
fn check_shares(name: &str, sources: &mut [Box<dyn NoiseSource>; 3], share: &Pmf, two: &Pmf) {
    let [a, b, c] = sources.each_mut().map(|source| draw(source.as_mut()));
    let three = two.plus(share);
    assert_fits(&format!("{name}, one share"), &a, share);
    assert_fits(&format!("{name}, two shares"), &sum(&[&a, &b]), two);
    assert_fits(&format!("{name}, three shares"), &sum(&[&a, &b, &c]), &three);
    let ratio = three.variance() / two.variance();
    assert!((ratio - 1.5).abs() < 1e-4, "three servers have {ratio} times the variance of two");

    assert_does_not_fit(&format!("{name}, one share missing"), &a, two);
    assert_does_not_fit(&format!("{name}, a share used twice"), &sum(&[&a, &a]), two);
    assert_does_not_fit(&format!("{name}, one share too many"), &sum(&[&a, &b, &c]), two);
}

fn gaussian_pmfs(sigma: f64) -> (Pmf, Pmf) {
    let share = Pmf::discrete_gaussian(sigma / 2.0_f64.sqrt());
    // From sigma 2 on the sum of two is a discrete Gaussian to 8 digits; that is what is claimed.
    (share, Pmf::discrete_gaussian(sigma))
}

fn laplace_pmfs(width: f64) -> (Pmf, Pmf) {
    (Pmf::negative_binomial_difference(0.5, width), Pmf::discrete_laplace(width))
}

#[test]
fn production_gaussian_shares() {
    for sigma in ["2", "7.3"] {
        let (share, two) = gaussian_pmfs(sigma.parse().expect("a number"));
        let mut sources =
            [(); 3].map(|()| Box::new(OpenDpNoise::new(gaussian(sigma)).expect("allowed")) as Box<_>);
        check_shares(&format!("opendp gaussian {sigma}"), &mut sources, &share, &two);
    }
}

#[test]
fn production_laplace_shares() {
    for width in ["2", "5.5"] {
        let (share, two) = laplace_pmfs(width.parse().expect("a number"));
        let mut sources =
            [(); 3].map(|()| Box::new(OpenDpNoise::new(laplace(width)).expect("allowed")) as Box<_>);
        check_shares(&format!("opendp laplace {width}"), &mut sources, &share, &two);
    }
}

#[test]
fn seeded_shares() {
    use rand::Rng;
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    let mut seeds = seeded_rng("seeded shares");
    let mut sources = |mechanism| {
        [(); 3].map(|()| {
            let randomness = ChaCha20Rng::seed_from_u64(seeds.next_u64());
            Box::new(SeededNoise::new(mechanism, randomness).expect("allowed")) as Box<_>
        })
    };
    let (share, two) = gaussian_pmfs(3.0);
    check_shares("seeded gaussian 3", &mut sources(gaussian("3")), &share, &two);
    let (share, two) = laplace_pmfs(4.0);
    check_shares("seeded laplace 4", &mut sources(laplace("4")), &share, &two);
}

#[test]
fn seeded_samplers() {
    let mut randomness = seeded_rng("seeded samplers");
    for sigma in ["0.3", "1", "2.5", "40.000001"] {
        let pmf = Pmf::discrete_gaussian(sigma.parse().expect("a number"));
        let samples: Vec<_> = (0..SAMPLES)
            .map(|_| twin::discrete_gaussian(scale(sigma), &mut randomness).expect("noise"))
            .collect();
        assert_fits(&format!("discrete gaussian {sigma}"), &samples, &pmf);
    }
    for width in ["0.4", "1", "3.7", "25"] {
        let pmf = Pmf::discrete_laplace(width.parse().expect("a number"));
        let samples: Vec<_> = (0..SAMPLES)
            .map(|_| twin::discrete_laplace(scale(width), &mut randomness).expect("noise"))
            .collect();
        assert_fits(&format!("discrete laplace {width}"), &samples, &pmf);
    }
    assert_eq!(twin::discrete_gaussian(scale("0"), &mut randomness), Ok(0));
    assert_eq!(twin::discrete_laplace(scale("0"), &mut randomness), Ok(0));
}

/// Faults that samplers of this kind have had must not pass for the right distribution.
#[test]
fn the_fit_notices_faulty_samplers() {
    let mut randomness = seeded_rng("faulty samplers");
    let mut gaussian = || twin::discrete_gaussian(scale("5"), &mut randomness).expect("noise");
    let samples: Vec<_> = (0..SAMPLES).map(|_| gaussian()).collect();
    let pmf = Pmf::discrete_gaussian(5.0);
    assert_fits("discrete gaussian 5", &samples, &pmf);
    assert_does_not_fit("sigma 3 % off", &samples, &Pmf::discrete_gaussian(5.15));
    assert_does_not_fit("another family of the same variance", &samples, &{
        let scale = (12.5_f64 - 1.0 / 12.0).sqrt();
        Pmf::discrete_laplace(scale)
    });

    // A sign and a magnitude without rejecting minus zero.
    let mut randomness = seeded_rng("doubled zero");
    let samples: Vec<_> = (0..SAMPLES)
        .map(|index| {
            let magnitude = loop {
                let value = twin::discrete_laplace(scale("5"), &mut randomness).expect("noise");
                if value >= 0 {
                    break value;
                }
            };
            if index % 2 == 0 { magnitude } else { -magnitude }
        })
        .collect();
    assert_does_not_fit("zero twice as likely", &samples, &Pmf::discrete_laplace(5.0));

    // A sampler that only yields even values, as a wrong fixed-point step would.
    let samples: Vec<_> = samples.iter().map(|sample| sample / 2 * 2).collect();
    assert_does_not_fit("even values only", &samples, &Pmf::discrete_laplace(5.0));
}

/// Wide noise is drawn in bounded work and keeps its variance.
#[test]
fn the_widest_noise_can_be_drawn() {
    let widest = 1_048_576.0_f64;
    for (mechanism, variance) in
        [(gaussian("1048576"), widest.powi(2) / 2.0), (laplace("1048576"), widest.powi(2))]
    {
        let share = OpenDpNoise::new(mechanism).expect("allowed").draw(64).expect("noise");
        let largest = share.values().iter().map(|value| value.unsigned_abs()).max().expect("bins");
        // 64 values all below a hundredth of the standard deviation, or one beyond 60 of them:
        // less likely than 10^-20.
        assert!(largest as f64 > 0.01 * variance.sqrt(), "{largest}");
        assert!((largest as f64) < 60.0 * variance.sqrt(), "{largest}");
    }
}

#[test]
fn rows_of_unsupported_width_are_refused() {
    let mut source = OpenDpNoise::new(gaussian("2")).expect("allowed");
    for bins in [0, (1 << 16) + 1, usize::MAX] {
        assert!(source.draw(bins).is_err(), "{bins} bins");
    }
    assert!(OpenDpNoise::new(gaussian("1.9")).is_err());
    assert!(OpenDpNoise::new(laplace("1")).is_err());
}

/// The words are the values modulo 2^64, so that shares add up in the ring.
#[test]
fn words_add_up_like_values() {
    let mut source = OpenDpNoise::new(gaussian("30")).expect("allowed");
    let (a, b) = (source.draw(100).expect("noise"), source.draw(100).expect("noise"));
    for ((a, b), (x, y)) in a.words().zip(b.words()).zip(a.values().iter().zip(b.values())) {
        assert_eq!(a.wrapping_add(b).cast_signed(), x + y);
    }
}
