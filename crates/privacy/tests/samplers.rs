//! Every sampler against its exact distribution. The production source cannot be seeded, so its tests
//! fail by chance about once in 10^9 runs; the seeded twin's tests repeat exactly.

mod support;

use concilium_privacy::{
    Mechanism, NoiseError, NoiseScale, NoiseSource, OpenDpNoise, twin, twin::SeededNoise,
};
use dashu::{integer::IBig, rational::RBig};
use opendp::traits::samplers::{sample_discrete_gaussian, sample_discrete_laplace};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use support::{
    SIGNIFICANCE, seeded_rng,
    statistics::{Pmf, alike, fit, mean, mean_square},
};

const SAMPLES: usize = 1_000_000;
const BINS: usize = 1_000;

/// Standard errors at which a moment is refused: by chance once in 5 * 10^8 comparisons.
const STANDARD_ERRORS: f64 = 6.0;

fn scale(text: &str) -> NoiseScale {
    text.parse().expect("a decimal number")
}

fn gaussian(sigma: &str) -> Mechanism {
    Mechanism::DiscreteGaussian { sigma: scale(sigma) }
}

fn laplace(width: &str) -> Mechanism {
    Mechanism::DiscreteLaplace { scale: scale(width) }
}

/// One server's shares from the production source.
fn production(mechanism: Mechanism) -> Vec<i64> {
    draw(OpenDpNoise::new(mechanism).expect("allowed"))
}

/// One server's shares from the seeded source.
fn seeded(mechanism: Mechanism, seeds: &mut ChaCha20Rng) -> Vec<i64> {
    draw(SeededNoise::new(mechanism, ChaCha20Rng::from_rng(seeds)).expect("allowed"))
}

fn draw(mut source: impl NoiseSource) -> Vec<i64> {
    let mut samples = Vec::with_capacity(SAMPLES);
    while samples.len() < SAMPLES {
        let share = source.draw(BINS).expect("noise");
        assert_eq!(share.bins(), BINS);
        samples.extend_from_slice(share.values());
    }
    samples
}

fn samples(mut sampler: impl FnMut() -> Result<i64, NoiseError>) -> Vec<i64> {
    (0..SAMPLES).map(|_| sampler().expect("noise")).collect()
}

/// Values of a sampler of opendp itself.
fn opendp(sampler: fn(RBig) -> opendp::error::Fallible<IBig>, width: &str) -> Vec<i64> {
    let width = RBig::from_parts(scale(width).millionths().into(), NoiseScale::UNITS_PER_ONE.into());
    let value = || i64::try_from(sampler(width.clone()).expect("randomness")).expect("64 bits");
    (0..SAMPLES).map(|_| value()).collect()
}

fn sum(parts: &[&[i64]]) -> Vec<i64> {
    (0..parts[0].len()).map(|index| parts.iter().map(|part| part[index]).sum()).collect()
}

fn assert_fits(what: &str, samples: &[i64], pmf: &Pmf) {
    let p = fit(samples, pmf);
    let count = samples.len();
    let moments = [
        (mean(samples) - pmf.mean()) / pmf.mean_error(count),
        (mean_square(samples) - pmf.mean_square()) / pmf.mean_square_error(count),
    ];
    eprintln!("{what}: p = {p:.3e}; mean and mean square off by {moments:+.2?} standard errors");
    assert!(p > SIGNIFICANCE, "{what}: p = {p:.3e}");
    assert!(moments.iter().all(|distance| distance.abs() < STANDARD_ERRORS), "{what}: {moments:+.2?}");
    for modulus in [2, 4, 8] {
        let p = residues(samples, pmf, modulus);
        assert!(p > SIGNIFICANCE, "{what} modulo {modulus}: p = {p:.3e}");
    }
}

/// How well the remainders fit: a step that loses low bits, or a lattice coarser than one unit, shows.
fn residues(samples: &[i64], pmf: &Pmf, modulus: i64) -> f64 {
    let residues: Vec<i64> = samples.iter().map(|x| x.rem_euclid(modulus)).collect();
    fit(&residues, &pmf.modulo(modulus))
}

fn assert_does_not_fit(what: &str, samples: &[i64], pmf: &Pmf) {
    let p = fit(samples, pmf);
    eprintln!("negative control, {what}: p = {p:.3e}");
    assert!(p < SIGNIFICANCE, "the test does not notice: {what}, p = {p:.3e}");
}

fn assert_alike(what: &str, first: &[i64], second: &[i64]) {
    let p = alike(first, second);
    eprintln!("{what}, both implementations: p = {p:.3e}");
    assert!(p > SIGNIFICANCE, "{what}: the two implementations differ, p = {p:.3e}");
}

/// Three servers' shares, and the sums of two and of three. Two must add up to what is claimed, three to
/// the exact convolution of the shares.
fn check_servers(name: &str, [a, b, c]: [Vec<i64>; 3], share: &Pmf, claimed: &Pmf) {
    let three = share.plus(share).plus(share);
    assert_fits(&format!("{name}, one share"), &a, share);
    let two_servers = sum(&[&a, &b]);
    assert_fits(&format!("{name}, two shares"), &two_servers, claimed);
    let three_servers = sum(&[&two_servers, &c]);
    assert_fits(&format!("{name}, three shares"), &three_servers, &three);
    // What the formulas say, and what was drawn: six standard errors of the quotient's parts.
    let ratio = three.mean_square() / claimed.mean_square();
    assert!((ratio - 1.5).abs() < 1e-4, "three servers have {ratio} times the variance of two");
    let drawn = mean_square(&three_servers) / mean_square(&two_servers);
    let error = (three.mean_square_error(SAMPLES) / three.mean_square()
        + claimed.mean_square_error(SAMPLES) / claimed.mean_square())
        * 1.5;
    eprintln!("{name}: three servers' variance is {drawn:.4} times that of two");
    assert!((drawn - 1.5).abs() < STANDARD_ERRORS * error, "{drawn}");

    assert_does_not_fit(&format!("{name}, one share missing"), &a, claimed);
    assert_does_not_fit(&format!("{name}, a share used twice"), &sum(&[&a, &a]), claimed);
    assert_does_not_fit(&format!("{name}, one share too many"), &three_servers, claimed);
}

/// A share of Gaussian noise and what two of them are claimed to be: from sigma 2 on their sum is a
/// discrete Gaussian to 8 digits.
fn gaussian_pmfs(sigma: f64) -> (Pmf, Pmf) {
    (Pmf::discrete_gaussian(sigma / 2.0_f64.sqrt()), Pmf::discrete_gaussian(sigma))
}

fn laplace_pmfs(width: f64) -> (Pmf, Pmf) {
    (Pmf::negative_binomial_difference(0.5, width), Pmf::discrete_laplace(width))
}

#[test]
fn gaussian_shares_of_three_servers() {
    let mut seeds = seeded_rng("gaussian shares");
    let (share, claimed) = gaussian_pmfs(2.0);
    let servers = [(); 3].map(|()| production(gaussian("2")));
    let replayable = seeded(gaussian("2"), &mut seeds);
    assert_fits("seeded gaussian 2, one share", &replayable, &share);
    assert_alike("gaussian 2, one share", &replayable, &servers[0]);
    check_servers("opendp gaussian 2", servers, &share, &claimed);
}

#[test]
fn laplace_shares_of_three_servers() {
    let mut seeds = seeded_rng("laplace shares");
    let (share, claimed) = laplace_pmfs(2.0);
    let servers = [(); 3].map(|()| production(laplace("2")));
    let replayable = seeded(laplace("2"), &mut seeds);
    assert_fits("seeded laplace 2, one share", &replayable, &share);
    assert_alike("laplace 2, one share", &replayable, &servers[0]);
    check_servers("opendp laplace 2", servers, &share, &claimed);
}

#[test]
fn discrete_gaussian_samplers() {
    let mut randomness = seeded_rng("discrete gaussian");
    for sigma in ["0.3", "40.000001"] {
        let pmf = Pmf::discrete_gaussian(sigma.parse().expect("a number"));
        let ours = samples(|| twin::discrete_gaussian(scale(sigma), &mut randomness));
        assert_fits(&format!("discrete gaussian {sigma}"), &ours, &pmf);
        let theirs = opendp(sample_discrete_gaussian, sigma);
        assert_fits(&format!("discrete gaussian {sigma} of opendp"), &theirs, &pmf);
        assert_alike(&format!("discrete gaussian {sigma}"), &ours, &theirs);
        if sigma == "0.3" {
            let wider = samples(|| twin::discrete_gaussian(scale("0.306"), &mut randomness));
            let p = alike(&wider, &theirs);
            eprintln!("negative control, 0.306 against 0.3: p = {p:.3e}");
            assert!(p < SIGNIFICANCE, "the comparison does not notice sigma 2 % off: p = {p:.3e}");
        }
    }
    assert_eq!(twin::discrete_gaussian(scale("0"), &mut randomness), Ok(0));
}

#[test]
fn discrete_laplace_samplers() {
    let mut randomness = seeded_rng("discrete laplace");
    for width in ["0.4", "25"] {
        let pmf = Pmf::discrete_laplace(width.parse().expect("a number"));
        let ours = samples(|| twin::discrete_laplace(scale(width), &mut randomness));
        assert_fits(&format!("discrete laplace {width}"), &ours, &pmf);
        let theirs = opendp(sample_discrete_laplace, width);
        assert_fits(&format!("discrete laplace {width} of opendp"), &theirs, &pmf);
        assert_alike(&format!("discrete laplace {width}"), &ours, &theirs);
    }
    assert_eq!(twin::discrete_laplace(scale("0"), &mut randomness), Ok(0));
}

#[test]
fn half_negative_binomial_sampler() {
    let mut randomness = seeded_rng("half negative binomial");
    for width in ["0.7", "4"] {
        let samples = samples(|| twin::half_negative_binomial(scale(width), &mut randomness));
        let width = width.parse().expect("a number");
        assert_fits(&format!("NB(1/2), scale {width}"), &samples, &Pmf::negative_binomial(0.5, width));
        // A geometric variable is NB(1); its ratio off by 3 %.
        let whole = Pmf::negative_binomial(1.0, width);
        assert_does_not_fit("NB(1) instead of NB(1/2)", &samples, &whole);
        assert_does_not_fit("scale 3 % off", &samples, &Pmf::negative_binomial(0.5, 1.03 * width));
    }
}

/// Noise of probabilities lies on a lattice of 2^-16 votes: every point of it must come as often as it
/// should, so both the coarse shape and the low bits are looked at.
#[test]
fn noise_on_the_finest_lattice() {
    const STEP: i64 = 1 << 12;
    let mechanism = gaussian("2").on_lattice(16);
    let servers = [(); 2].map(|()| production(mechanism));
    let (share, claimed) = gaussian_pmfs(131_072.0);
    let coarse = |samples: &[i64]| samples.iter().map(|x| x.div_euclid(STEP)).collect::<Vec<_>>();
    assert_fits("one share in steps of 2^12", &coarse(&servers[0]), &share.coarser(STEP));
    let two = sum(&[&servers[0], &servers[1]]);
    assert_fits("two shares in steps of 2^12", &coarse(&two), &claimed.coarser(STEP));
    for modulus in [2, 4, 8, STEP / 16] {
        let p = residues(&servers[0], &share, modulus);
        eprintln!("the finest lattice modulo {modulus}: p = {p:.3e}");
        assert!(p > SIGNIFICANCE, "modulo {modulus}: p = {p:.3e}");
        // A value that went through a type with fewer digits loses its last bits.
        let rounded: Vec<i64> = servers[0].iter().map(|x| x / 2 * 2).collect();
        assert!(
            residues(&rounded, &share, modulus) < SIGNIFICANCE,
            "lost bits go unnoticed modulo {modulus}"
        );
    }
}

/// Faults that samplers of this kind have had must not pass for the right distribution.
#[test]
fn the_fit_notices_faulty_samplers() {
    let mut randomness = seeded_rng("faulty samplers");
    let five = samples(|| twin::discrete_gaussian(scale("5"), &mut randomness));
    assert_fits("discrete gaussian 5", &five, &Pmf::discrete_gaussian(5.0));
    assert_does_not_fit("sigma 1.5 % off", &five, &Pmf::discrete_gaussian(5.075));
    assert_does_not_fit("another family of the same variance", &five, &{
        let scale = (12.5_f64 - 1.0 / 12.0).sqrt();
        Pmf::discrete_laplace(scale)
    });

    // A sign and a magnitude without rejecting minus zero.
    let mut randomness = seeded_rng("doubled zero");
    let signed: Vec<i64> = (0..SAMPLES)
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
    assert_does_not_fit("zero twice as likely", &signed, &Pmf::discrete_laplace(5.0));

    // A sampler that only yields even values, as a wrong fixed-point step would.
    let even: Vec<_> = five.iter().map(|sample| sample / 2 * 2).collect();
    let pmf = Pmf::discrete_gaussian(5.0);
    assert_does_not_fit("even values only", &even, &pmf);
    for modulus in [2, 4, 8] {
        assert!(residues(&even, &pmf, modulus) < SIGNIFICANCE, "even values go unnoticed modulo {modulus}");
    }
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
