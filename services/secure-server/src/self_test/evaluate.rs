//! The evaluation of a self-test: public rows, the whole protocol up to the votes, and a limit on its time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use concilium_inference::{Ensemble, EnsembleError, PreparedModel, Question, RingElement, probabilities};
use concilium_mpc::{
    Address, Bytes, Channel, ChannelError, MpcError, Neighbour, Party, PartyIndex, Progress, Shares, Traffic,
};
use concilium_network::{InputDomain, Ring};
use concilium_privacy::Release;
use concilium_ring::{Z32, Z64};
use ndarray::Array2;

use crate::answer::RunId;
use crate::context::Context;
use crate::link::{Failure, Link};
use crate::models::Entry;
use crate::task::Task;

/// Public rows of a test: the smallest values that the task allows, the largest, and two drawn between.
pub(super) const ROWS: usize = 4;

/// How the evaluation ended on this server.
pub(super) enum Tested {
    /// It ended as it must.
    Passed(Traffic),
    /// It ended, with another outcome than a model that keeps to its ranges gives.
    Failed(String),
    /// It did not end: the servers are out of step now.
    OutOfStep(String),
}

/// Evaluates a version on public rows up to its votes, and opens whether every row has one.
///
/// # Errors
/// [`Failure`] when another server is lost, which says nothing about the version.
pub(super) fn evaluate(
    link: &mut Link<'_>,
    context: &Context,
    task: &Task,
    entry: &Entry,
    session: u64,
    run_id: &RunId,
) -> Result<Tested, Failure> {
    let fault = |error: &dyn std::fmt::Display| Failure::fault(error.to_string());
    let model = context.models.prepare(&entry.version_key()).map_err(|error| fault(&error))?;
    let rows = public_rows(&task.domain, run_id);
    let rows = task.domain.encode(rows.view(), task.precision.fractional_bits);
    let rows = rows.map_err(|error| fault(&error))?;
    let question = match task.precision.ring {
        Ring::Bits64 => in_ring::<Z64>(context.here, task, &model, &rows).map(Question::from),
        Ring::Bits32 => in_ring::<Z32>(context.here, task, &model, &rows).map(Question::from),
    };
    let question = match question {
        Ok(question) => question,
        Err(error) => return Ok(Tested::OutOfStep(error.to_string())),
    };
    let keys = link.lane.pairwise_keys().map_err(|error| link.fail(&error, "share a key"))?;
    let limit = Duration::from_millis(context.limits.self_test_timeout_ms);
    let mut computation = link.computation();
    let channel = computation.channel(context, task.name(), session);
    let mut timed = Timed { channel, end: Instant::now() + limit };
    let mut party = Party::new(context.here, session, &keys, &mut timed);
    // A fault in the program that a model brings to light must not end the server, nor come again in a batch.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        if let (Release::MeanProbability, Some((models, rows))) = (task.policy.release, question.wide()) {
            drop(probabilities(&mut party, models, rows)?);
        }
        let votes = question.histogram(&mut party)?;
        votes.rows_add_up_to(&mut party, 1)
    }));
    let traffic = party.traffic().clone();
    drop(party);
    let late = timed.is_late();
    Ok(match outcome {
        Ok(Ok(true)) if !late => Tested::Passed(traffic),
        Ok(Ok(true | false)) if late => Tested::Failed(too_slow(limit)),
        Ok(Ok(_)) => Tested::Failed(
            "on rows within the task's ranges its values leave the ranges that its architecture states, so that \
             it gives a row no vote; `concilium-owner check` shows the ranges"
                .to_owned(),
        ),
        Ok(Err(MpcError::Channel(ChannelError::TimedOut { .. } | ChannelError::Disconnected { .. }))) if !late => {
            return Err(Failure::fault("another server was lost during a self-test".to_owned()));
        }
        Ok(Err(_)) if late => Tested::OutOfStep(too_slow(limit)),
        Ok(Err(error)) => Tested::OutOfStep(format!("its evaluation failed: {error}")),
        Err(_) => {
            tracing::error!(model = %entry.key, version = entry.version, "the evaluation of a model panicked");
            Tested::OutOfStep("its evaluation failed on this server; the server's log says more".to_owned())
        }
    })
}

fn too_slow(limit: Duration) -> String {
    format!(
        "the evaluation of {ROWS} rows took more than `limits.self_test_timeout_ms` = {}; share a smaller model",
        limit.as_millis()
    )
}

/// The model alone, and the encoded rows, which everybody may know, as this server's part of a trivial
/// sharing.
fn in_ring<E: RingElement>(
    here: PartyIndex,
    task: &Task,
    model: &PreparedModel,
    rows: &Array2<i64>,
) -> Result<(Ensemble<E>, Shares<E>), EnsembleError> {
    let (features, bits) = (task.domain.features(), task.precision.fractional_bits);
    let models = Ensemble::of_prepared([model], features, task.policy.bins, bits)?;
    Ok((models, Shares::of_public(here, rows.mapv(E::from_signed))))
}

fn public_rows(domain: &InputDomain, run_id: &RunId) -> Array2<f64> {
    let mut hasher = blake3::Hasher::new_derive_key("concilium v1 self-test rows");
    let mut stream = hasher.update(run_id).finalize_xof();
    let mut part = || {
        let mut bytes = [0; 8];
        stream.fill(&mut bytes);
        (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let (minimum, maximum) = (domain.minimum(), domain.maximum());
    Array2::from_shape_fn((ROWS, domain.features()), |(row, feature)| {
        let (low, high) = (minimum[feature], maximum[feature]);
        match row {
            0 => low,
            1 => high,
            _ => (low + part() * (high - low)).clamp(low, high),
        }
    })
}

/// A channel that ends when the test takes too long. Every server looks at its own clock.
struct Timed<C> {
    channel: C,
    end: Instant,
}

impl<C> Timed<C> {
    fn is_late(&self) -> bool {
        Instant::now() > self.end
    }

    fn check(&self, neighbour: Neighbour, address: Address) -> Result<(), ChannelError> {
        if self.is_late() {
            return Err(ChannelError::TimedOut { neighbour, address, waited_ms: 0 });
        }
        Ok(())
    }
}

impl<C: Channel> Channel for Timed<C> {
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError> {
        self.check(to, address)?;
        self.channel.send(to, address, payload)
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError> {
        self.check(from, address)?;
        self.channel.receive(from, address)
    }

    fn note_progress(&mut self, progress: Progress) {
        self.channel.note_progress(progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_rows_lie_in_the_domain_and_differ_between_tests() {
        let domain = InputDomain::new(vec![3], vec![-1.0, 0.0, 5.0], vec![1.0, 0.1, 4254.0]).expect("sound");
        let (first, second) = (public_rows(&domain, &[1; 16]), public_rows(&domain, &[2; 16]));
        assert_eq!(
            (first.row(0).to_vec(), first.row(1).to_vec()),
            (vec![-1.0, 0.0, 5.0], vec![1.0, 0.1, 4254.0])
        );
        assert_eq!(first, public_rows(&domain, &[1; 16]), "the three servers draw the same");
        assert_ne!(first, second);
        for rows in [first, second] {
            for (place, value) in rows.indexed_iter() {
                assert!((domain.minimum()[place.1]..=domain.maximum()[place.1]).contains(value));
            }
            domain.encode(rows.view(), 12).expect("the domain takes them");
        }
    }
}
