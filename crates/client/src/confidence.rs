//! How sure a noisy histogram makes its label. Post-processing of a released answer: it costs nothing.
//!
//! All statements are about the noise alone and hold for any true counts, however the label was
//! chosen. They rest on the *actual* noise, that of all three servers, not on the guaranteed one.
//!
//! Let `w` be the class with the largest noisy count, `m` its margin over the runner-up, `L` the number
//! of classes, and `D` the difference of the noise of two counts.
//! - *Plurality.* If `w` is not a class with the most votes, and `p` is one, then the noise of `w`
//!   exceeds that of `p` by `m` at least. There are `L - 1` such `w`, hence a wrong label with a margin
//!   of `m` or more has a probability of `(L - 1) P(D >= m)` at most.
//! - *Lead.* The true margin of `w` over all others lies below `m - q` only if the noise of `w` exceeds
//!   that of the true runner-up of `w` by more than `q`; that is one of `L` pairs. It lies above `m + q`
//!   only if the noise of the noisy runner-up exceeds that of `w` by more than `q`, one of `L (L - 1)`.
//!
//! `P(D >= m)` is bounded from above. With Gaussian noise `D` is the sum of six discrete Gaussians of
//! parameter s; each further term multiplies the pointwise distance to one discrete Gaussian by
//! `(1 + e) / (1 - e)` at most, with `e = 2.01 exp(-pi^2 s^2)` (Poisson summation, as Kairouz, Liu and
//! Steinke 2021), which from the floor of sigma on is together below `1 + 1e-7`. With Laplace noise `D` is
//! exactly the sum of three discrete Laplace variables. Both have terms that fall with their distance
//! from zero, which bounds the sum over a coarse grid from above.

use concilium_privacy::Mechanism;
use ndarray::ArrayView1;

use crate::answer::winner;

/// Probability that an interval of [`Confidence::of_row`] misses.
pub const INTERVAL_ERROR: f64 = 0.05;

/// What a row of noisy counts says about the true ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowConfidence {
    /// The class with the largest noisy count; the lower one of a tie.
    pub label: usize,
    /// Its noisy count less that of the runner-up, in votes.
    pub margin: i64,
    /// Lower bound of the probability, before the noise was drawn, of no wrong label with such a
    /// margin. Zero where the margin says nothing.
    pub plurality: f64,
    /// Interval in which the true margin lies, in votes; negative where the label has fewer votes than
    /// another. It misses with a probability of [`INTERVAL_ERROR`] at most.
    pub lead: (i64, i64),
}

/// The noise of a task's histograms.
#[derive(Clone, Debug)]
pub struct Confidence {
    classes: usize,
    /// Distance of two entries of `tails`, in votes.
    stride: u64,
    /// Upper bound of `P(D >= i * stride)` for entry i, falling.
    tails: Vec<f64>,
}

/// Entries of a table for each standard deviation of Gaussian noise, or each scale of Laplace noise.
const RESOLUTION: f64 = 4096.0;

/// Tails below this are not told apart.
const NEGLIGIBLE: f64 = 1e-18;

impl Confidence {
    /// For rows of `classes` counts with the noise of three servers under `mechanism`; `None` for a
    /// mechanism that this program does not know.
    pub fn new(mechanism: Mechanism, classes: usize) -> Option<Self> {
        let votes = |millionths: u64| millionths as f64 / 1e6;
        let (width, probability): (f64, Box<dyn Fn(f64) -> f64>) = match mechanism {
            Mechanism::DiscreteGaussian { sigma } => {
                // A server's share has the scale sigma / sqrt 2, rounded up to a multiple of 2^-16.
                let share = votes(sigma.millionths()) / std::f64::consts::SQRT_2 + 1.0 / 65_536.0;
                let variance = 6.0 * share * share;
                let normalised = (1.0 + 1e-7) / (2.0 * std::f64::consts::PI * variance).sqrt();
                (variance.sqrt(), Box::new(move |x| normalised * (-x * x / (2.0 * variance)).exp()))
            }
            Mechanism::DiscreteLaplace { scale } => {
                let scale = votes(scale.millionths());
                (scale, Box::new(move |x| three_laplace(scale, x)))
            }
            _ => return None,
        };
        let stride = ((width / RESOLUTION).floor() as u64).max(1);
        let mut terms = Vec::new();
        for place in 0_u64.. {
            // The largest of the `stride` terms that the grid point stands for.
            let term = stride as f64 * probability((place * stride) as f64);
            terms.push(term);
            // What lies beyond is below the last term times a few widths.
            if place * stride > 4 * width.ceil() as u64 && 4.0 * term * RESOLUTION < NEGLIGIBLE {
                break;
            }
        }
        let mut sum = NEGLIGIBLE;
        let mut tails: Vec<f64> = terms
            .into_iter()
            .rev()
            .map(|term| {
                sum += term;
                sum
            })
            .collect();
        tails.reverse();
        Some(Confidence { classes, stride, tails })
    }

    /// Upper bound of the probability that the noise of one count exceeds that of another by `margin`
    /// or more.
    pub fn exceeds_by(&self, margin: i64) -> f64 {
        let Ok(margin) = u64::try_from(margin) else { return 1.0 };
        let place = usize::try_from(margin / self.stride).unwrap_or(usize::MAX).min(self.tails.len() - 1);
        self.tails[place].min(1.0)
    }

    /// The smallest excess that is exceeded with a probability of `error` at most.
    fn quantile(&self, error: f64) -> i64 {
        let place = self.tails.partition_point(|&tail| tail > error);
        i64::try_from(place as u64 * self.stride).unwrap_or(i64::MAX)
    }

    /// What one row says, of which `models` have voted.
    ///
    /// # Panics
    /// If the row has another number of classes.
    pub fn of_row(&self, counts: ArrayView1<'_, i64>, models: u32) -> RowConfidence {
        assert_eq!(counts.len(), self.classes, "the row has another number of classes");
        let winner = winner(counts);
        let others = self.classes.saturating_sub(1) as f64;
        let wrong = if self.classes < 2 { 0.0 } else { others * self.exceeds_by(winner.margin) };
        let pairs = self.classes as f64;
        let below = self.quantile(INTERVAL_ERROR / 2.0 / pairs);
        let above = self.quantile(INTERVAL_ERROR / 2.0 / (pairs * others.max(1.0)));
        let most = i64::from(models);
        let bound = |value: i64| value.clamp(-most, most);
        let lead = (bound(winner.margin.saturating_sub(below)), bound(winner.margin.saturating_add(above)));
        RowConfidence { label: winner.label, margin: winner.margin, plurality: (1.0 - wrong).max(0.0), lead }
    }
}

/// P(X = x) for the sum X of three discrete Laplace variables of this scale, x >= 0 whole: the
/// difference of two NB(3) variables, `p^6 q^x sum_k C(k+2, 2) C(k+x+2, 2) q^(2k)` with
/// `q = exp(-1 / scale)`, summed in closed form.
fn three_laplace(scale: f64, x: f64) -> f64 {
    let q = (-1.0 / scale).exp();
    // 1 - q and 1 - q^2 without cancellation.
    let (p, rest) = (-(-1.0 / scale).exp_m1(), -(-2.0 / scale).exp_m1());
    let squared = q * q;
    // Sums of C(k+2, 2) q^(2k), times 1, k and k (k - 1).
    let zeroth = rest.powi(-3);
    let first = 3.0 * squared * rest.powi(-4);
    let second = 12.0 * squared * squared * rest.powi(-5);
    let at_zero = second + 4.0 * first + 2.0 * zeroth;
    let sum = at_zero + x * (2.0 * first + 3.0 * zeroth) + x * x * zeroth;
    p.powi(6) * (-x / scale).exp() * sum / 2.0
}

#[cfg(test)]
#[path = "confidence_tests.rs"]
mod tests;
