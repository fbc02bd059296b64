//! What a mechanism really costs: exact values beside the bounds that are charged, as information.
//!
//! The ledger adds rho, and the epsilon that belongs to it at a delta holds for every mechanism of that
//! rho. For one mechanism with fixed parameters the exact epsilon is smaller, by 2 to 13 % for the
//! Gaussian and up to 4 times for a single Laplace row. It is a number to look at: nothing here is
//! enforced.

use libm::{erfc, lgamma};

use super::{ConvertError, delta_value, rho, votes};
use crate::parameter::{Delta, NanoRho, NoiseScale};

/// Halvings of an interval of epsilon: beyond the precision of the numbers.
const HALVINGS: usize = 200;

/// The smallest epsilon at `delta` of a Gaussian mechanism whose rows cost `loss` together, however they
/// were composed (Balle and Wang 2018, theorem 8, with `mu = sqrt(2 rho)`; Smith and Thakurta 2022 for
/// parameters that were chosen on the way).
///
/// It is the value of the continuous Gaussian: from sigma 2 on the discrete one differs by less than
/// 0.1 %, and no bound is claimed.
///
/// # Errors
/// [`ConvertError::Delta`] when `delta` is not strictly between zero and one.
pub fn gaussian_epsilon(loss: NanoRho, delta: Delta) -> Result<f64, ConvertError> {
    let delta = checked(delta)?;
    if loss == NanoRho::ZERO {
        return Ok(0.0);
    }
    let mu = (2.0 * rho(loss)).sqrt();
    let excess = |epsilon: f64| {
        let (near, far) = (epsilon / mu - mu / 2.0, epsilon / mu + mu / 2.0);
        ln_upper_tail(near).exp() - (epsilon + ln_upper_tail(far)).exp()
    };
    // The closed form of zCDP is above every value of this rho.
    let high = rho(loss) + 2.0 * (rho(loss) * -delta.ln()).sqrt();
    Ok(smallest(high, |epsilon| excess(epsilon) <= delta))
}

/// The smallest epsilon at `delta` of `rows` rows of discrete Laplace noise, when neighbouring inputs
/// differ in one vote.
///
/// Each of the `n = 2 rows` counts that move has a loss of exactly `+1 / b` or `-1 / b`, the first with
/// probability `p = e^(1/b) / (1 + e^(1/b))`. So the whole loss is `(2 J - n) / b` with J binomial, and
/// `delta(epsilon) = E[max(0, 1 - e^(epsilon - loss))]` is a finite sum.
///
/// # Errors
/// [`ConvertError::Delta`] when `delta` is not strictly between zero and one.
pub fn laplace_epsilon(scale: NoiseScale, rows: u32, delta: Delta) -> Result<f64, ConvertError> {
    let delta = checked(delta)?;
    if rows == 0 {
        return Ok(0.0);
    }
    let counts = 2 * u64::from(rows);
    let (n, width) = (counts as f64, votes(scale));
    // ln p and ln (1 - p), without cancellation.
    let ln_up = -(-1.0 / width).exp().ln_1p();
    let ln_down = ln_up - 1.0 / width;
    // Only losses above zero count. Terms with the largest loss come first.
    let terms: Vec<(f64, f64)> = (0..=counts / 2)
        .map(|downs| {
            let downs = downs as f64;
            let ups = n - downs;
            let ln_ways = lgamma(n + 1.0) - lgamma(ups + 1.0) - lgamma(downs + 1.0);
            ((ups - downs) / width, (ln_ways + ups * ln_up + downs * ln_down).exp())
        })
        .collect();
    let excess = |epsilon: f64| -> f64 {
        let above = terms.iter().take_while(|(loss, _)| *loss > epsilon);
        above.map(|(loss, probability)| probability * -(epsilon - loss).exp_m1()).sum()
    };
    Ok(smallest(n / width, |epsilon| excess(epsilon) <= delta))
}

fn checked(delta: Delta) -> Result<f64, ConvertError> {
    if delta.units() == 0 || delta >= Delta::ONE {
        return Err(ConvertError::Delta { delta });
    }
    Ok(delta_value(delta))
}

/// The smallest value in `0..=high` that is enough, given that `high` is.
fn smallest(high: f64, enough: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, high);
    if enough(low) {
        return low;
    }
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        if enough(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// `ln P(Z > x)` for a standard normal Z.
fn ln_upper_tail(x: f64) -> f64 {
    // Beyond, erfc leaves the range of a double, and four terms of the asymptotic series are exact to
    // ten digits.
    const FAR: f64 = 25.0;
    if x < FAR {
        return (0.5 * erfc(x / std::f64::consts::SQRT_2)).ln();
    }
    let inverse = 1.0 / (x * x);
    let series = 1.0 - inverse * (1.0 - inverse * (3.0 - inverse * (15.0 - inverse * 105.0)));
    -x * x / 2.0 - (x * (2.0 * std::f64::consts::PI).sqrt()).ln() + series.ln()
}

/// `P(Z > x)` for a standard normal Z.
pub(crate) fn upper_tail(x: f64) -> f64 {
    0.5 * erfc(x / std::f64::consts::SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_tail_meet() {
        for x in [24.999_999, 25.0, 25.000_001, 30.0, 37.0] {
            let (near, far) = (upper_tail(x).ln(), ln_upper_tail(x));
            assert!((near / far - 1.0).abs() < 1e-10, "{x}: {near} {far}");
        }
        assert!((ln_upper_tail(0.0) + 2.0_f64.ln()).abs() < 1e-15);
        assert!(ln_upper_tail(1e9).is_finite() && ln_upper_tail(-40.0) == 0.0);
    }
}
