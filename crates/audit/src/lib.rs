//! Empirical privacy audits: are the releases of a task as private as what is charged for them says?
//!
//! # How
//! Two toy ensembles differ in the models of one privacy unit, which vote for class 0 in one and for
//! class 1 in the other. Both are secret-shared and evaluated by the protocols that servers run, all
//! three servers in this process, with the noise that servers draw ([`world`]). What one corrupted
//! server and a client know together of each release becomes a sample ([`View`]): the noised sums less
//! that server's own noise, or the released label or bit beside the server's own noise.
//!
//! On a quarter of the samples an event is chosen that is likely in one ensemble and unlikely in the
//! other; the other three quarters test it ([`event`]). A mechanism of (epsilon, delta) has P(event) <=
//! e^epsilon Q(event) + delta, so from Clopper-Pearson bounds ([`interval`]) p below P and q above Q
//!
//! ```text
//! epsilon >= ln((p - delta) / q)
//! ```
//!
//! with the stated confidence. If that is above the epsilon that is charged, the release is **refuted**.
//!
//! # What it can show
//! An audit can refute and never prove: a fault that this event does not see stays unseen, and so does a
//! loss that so few samples cannot show ([`Finding::ceiling`]). A release of true (epsilon, delta) is
//! refuted by one audit in [`FALSE_ALARM`] at most, whatever its distribution is.
//!
//! Sources: Ding et al., "Detecting violations of differential privacy", CCS 2018; Bichsel et al.,
//! "DP-Sniper", S&P 2021; Clopper and Pearson, Biometrika 26 (1934).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

pub mod event;
pub mod interval;
pub mod view;
pub mod world;

use concilium_mpc::PartyIndex;
use concilium_privacy::{
    Delta, Mechanism, MechanismError, NanoRho, NoiseError, PolicyError, Release, TaskPolicy,
    convert::{self, ConvertError},
};
use serde::Serialize;
use thiserror::Error;

use crate::event::{Event, Samples};
use crate::view::Probe;
pub use crate::view::View;
pub use crate::world::ServerNoise;

/// Odds that an audit refutes a release that is as private as is charged: one audit in a million, over
/// all views, servers and directions together.
pub const FALSE_ALARM: f64 = 1e-6;

/// Fewest releases of each ensemble: with fewer, no event can be told from chance.
pub const FEWEST_RELEASES: usize = 1_000;

/// Most releases of each ensemble, bounded by memory: about 150 bytes each.
pub const MOST_RELEASES: usize = 5_000_000;

/// Why there is no audit.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuditError {
    /// Too few or too many releases.
    #[error("{releases} releases cannot be audited; use {FEWEST_RELEASES} to {MOST_RELEASES}")]
    Releases {
        /// Releases asked for.
        releases: usize,
    },
    /// No server is taken as corrupted.
    #[error("no server is taken as corrupted; name one, two or three of them")]
    NoServer,
    /// The ensembles would need too many models.
    #[error(
        "a unit of {votes} votes among {classes} classes takes {comparisons} comparisons for a row, above \
         the limit {limit}; audit the same noise with fewer models per owner or classes"
    )]
    TooLarge {
        /// Votes of one privacy unit.
        votes: u32,
        /// Classes.
        classes: usize,
        /// Comparisons that the models of the unit need.
        comparisons: usize,
        /// Most that are run.
        limit: usize,
    },
    /// This version knows no audit of the release.
    #[error("there is no audit of the release {release}; use the program of the servers' version")]
    Release {
        /// The release.
        release: Release,
    },
    /// The policy is unsound.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The noise is not allowed.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// The audit's delta is unsound.
    #[error(transparent)]
    Delta(#[from] ConvertError),
    /// A server's noise could not be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The protocols failed, which in one process is a fault of the program.
    #[error("the evaluation failed: {0}")]
    Evaluation(String),
}

/// How much is audited.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Releases (rows) of each of the two ensembles, for each part of the release that is paid for.
    pub releases: usize,
    /// Servers that are taken as corrupted, one at a time.
    pub corrupted: Vec<PartyIndex>,
    /// Delta of the audit; one that suits the price otherwise, see [`audit_delta`].
    pub delta: Option<Delta>,
    /// Seed of shares and shared randomness. Noise has its own randomness.
    pub seed: u64,
}

/// How a view fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The lower bound is within the claim, and could have been above.
    Holds,
    /// The lower bound is within the claim, but no outcome of so few releases would be above it.
    TooFewReleases,
    /// The lower bound is above the claim: the release is less private than is charged.
    Refuted,
}

/// What one view of one corrupted server has shown.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub view: &'static str,
    /// The corrupted server whose noise is known.
    pub corrupted_server: usize,
    /// Rows that one sample is made of.
    pub rows: u32,
    /// What is charged for them.
    pub rho: String,
    /// Delta of the three epsilons.
    pub delta: f64,
    /// Samples that tested the event, of the ensemble in which it is likely and of the other.
    pub trials: [u64; 2],
    /// Of these those in which it happened.
    pub hits: [u64; 2],
    /// Lower bound of epsilon, the larger one of both directions.
    pub lower_bound: f64,
    /// Epsilon that belongs to what is charged.
    pub claim: f64,
    /// The exact epsilon of the mechanism, where it is known. Information.
    pub exact: Option<f64>,
    /// The largest lower bound that any outcome of so many samples would have given.
    pub ceiling: f64,
    /// Lower bound against claim.
    pub verdict: Verdict,
}

/// What an audit has shown.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The task.
    pub task: String,
    /// What it releases.
    pub release: &'static str,
    /// Releases of each ensemble, for each part that is paid for.
    pub releases: usize,
    /// Odds that a sound release is refuted, over all findings.
    pub false_alarm: f64,
    /// All views.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether a lower bound is above its claim.
    pub fn is_refuted(&self) -> bool {
        self.findings.iter().any(|finding| finding.verdict == Verdict::Refuted)
    }
}

/// A delta at which an event of the size that matters stands out from chance: 0.06 times the distance in
/// standard deviations that a loss of `rho` allows two Gaussians, to two digits, and 0.2 at most. The
/// claim of a loss in rho holds at every delta, and at the small ones of policies no feasible number of
/// samples shows anything.
pub fn audit_delta(rho: NanoRho) -> Delta {
    let wanted = (0.06 * (2.0 * convert::rho(rho)).sqrt()).clamp(1e-5, 0.2);
    format!("{wanted:.1e}").parse().expect("a number between 1e-5 and 0.2 has a delta's places")
}

/// Audits `policy` with the noise of `servers`; `progress(done, all)` is told of released rows.
///
/// The toy ensembles have the policy's classes, noise and votes of one unit, one input feature, and as
/// many other models as make the unit's votes matter.
///
/// # Errors
/// [`AuditError`]; a policy without an audit is refused before anything is run.
pub fn audit(
    policy: &TaskPolicy,
    settings: &Settings,
    servers: [ServerNoise; 3],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, AuditError> {
    let &Settings { releases, ref corrupted, delta, seed } = settings;
    if !(FEWEST_RELEASES..=MOST_RELEASES).contains(&releases) {
        return Err(AuditError::Releases { releases });
    }
    if corrupted.is_empty() {
        return Err(AuditError::NoServer);
    }
    let probes = Probe::all(policy)?;
    // Two views of each probe, tested in two directions with two bounds each.
    let bounds = (probes.len() * 2 * corrupted.len() * 4) as f64;
    let servers = world::Servers::new(servers);
    let mut findings = Vec::new();
    let all = 2 * releases * probes.len();
    for (position, probe) in probes.iter().enumerate() {
        let begun = 2 * releases * position;
        let views = probe.run(policy, releases, corrupted, seed, &servers, &mut |done| {
            progress(begun + done, all);
        })?;
        for view in views {
            findings.push(judge(policy, &view, delta, FALSE_ALARM / bounds)?);
        }
    }
    findings.sort_by_key(|finding| finding.corrupted_server);
    Ok(Report {
        task: policy.task.clone(),
        release: policy.release.name(),
        releases,
        false_alarm: FALSE_ALARM,
        findings,
    })
}

/// Tests the claim of one view in both directions; each bound fails with a probability of `error`.
fn judge(policy: &TaskPolicy, view: &View, delta: Option<Delta>, error: f64) -> Result<Finding, AuditError> {
    let delta = delta.unwrap_or_else(|| audit_delta(view.rho));
    let claim = convert::epsilon(view.rho, delta)?;
    let value = convert::delta_value(delta);
    let tested = [[0, 1], [1, 0]].map(|[likely, unlikely]| {
        let samples = [&view.samples[likely], &view.samples[unlikely]];
        let parts = samples.map(|samples| Samples::split(samples));
        let event = Event::choose([&parts[0].choosing, &parts[1].choosing], value, error);
        let [first, second] = [&parts[0].testing, &parts[1].testing].map(|part| event.count(part));
        (lower_bound([first, second], value, error), first, second)
    });
    let [one, other] = tested;
    let (bound, likely, unlikely) = if one.0 >= other.0 { one } else { other };
    let ceiling = lower_bound([(likely.0, likely.0), (unlikely.0, 0)], value, error);
    let verdict = match (bound > claim, ceiling > claim) {
        (true, _) => Verdict::Refuted,
        (false, true) => Verdict::Holds,
        (false, false) => Verdict::TooFewReleases,
    };
    Ok(Finding {
        view: view.name,
        corrupted_server: view.corrupted.number(),
        rows: view.rows,
        rho: view.rho.to_string(),
        delta: value,
        trials: [likely.0, unlikely.0],
        hits: [likely.1, unlikely.1],
        lower_bound: bound,
        claim,
        exact: exact(policy, view, delta),
        ceiling,
        verdict,
    })
}

/// `ln((p - delta) / q)` with p below and q above the true probabilities, each but for `error`; zero
/// where that shows nothing.
fn lower_bound([likely, unlikely]: [(u64, u64); 2], delta: f64, error: f64) -> f64 {
    let p = interval::lower(likely.1, likely.0, error) - delta;
    let q = interval::upper(unlikely.1, unlikely.0, error);
    if p > q { (p / q).ln() } else { 0.0 }
}

/// The exact epsilon of what is charged for the view, where all of its noise is Gaussian, or discrete Laplace
/// and moved by one vote.
fn exact(policy: &TaskPolicy, view: &View, delta: Delta) -> Option<f64> {
    let gaussian = |mechanism| matches!(mechanism, Mechanism::DiscreteGaussian { .. });
    match policy.mechanism {
        Mechanism::DiscreteGaussian { .. }
            if policy.threshold.is_none_or(|threshold| gaussian(threshold.mechanism)) =>
        {
            convert::gaussian_epsilon(view.rho, delta).ok()
        }
        Mechanism::DiscreteLaplace { scale }
            if policy.votes_of_one_unit() == 1 && policy.threshold.is_none() =>
        {
            convert::laplace_epsilon(scale, view.rows, delta).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delta_of_an_audit_follows_the_price() {
        for (rho, delta) in [("0.25", "0.042"), ("0.04", "0.017"), ("0.0025", "0.0042"), ("25", "0.2")] {
            assert_eq!(audit_delta(rho.parse().unwrap()), delta.parse().unwrap(), "{rho}");
        }
        assert_eq!(audit_delta(NanoRho::new(1)), "1e-5".parse().unwrap());
    }

    #[test]
    fn a_lower_bound_is_what_the_counts_show() {
        // 900 of 1000 against 100 of 1000: the point estimate is ln 9 at delta 0.
        let bound = lower_bound([(1_000, 900), (1_000, 100)], 0.0, 1e-6);
        assert!(bound > 1.6 && bound < 9.0_f64.ln(), "{bound}");
        assert!(lower_bound([(1_000, 900), (1_000, 100)], 0.3, 1e-6) < bound);
        assert_eq!(lower_bound([(1_000, 100), (1_000, 100)], 0.0, 1e-6), 0.0);
        assert_eq!(lower_bound([(0, 0), (0, 0)], 0.0, 1e-6), 0.0);
    }
}
