//! Evaluates an agreed batch: votes, noise, ledger, barrier, release, in this order.

use std::time::Instant;

use concilium_inference::histogram;
use concilium_mpc::release::ReleasedComponents;
use concilium_mpc::{MpcError, Neighbour, Party, PartyIndex, Shares, Traffic};
use concilium_privacy::{Release, Reservation};
use concilium_ring::Z64;
use concilium_rpc::lane::LaneChannel;
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{self, Barrier, EvaluationStatistics, ResultEncoding};
use ndarray::Array2;
use zeroize::Zeroize;

use crate::answer::{Answer, RunId};
use crate::context::Context;
use crate::link::{Failure, Link};
use crate::models::{Entry, digest_of, ensemble};
use crate::task::Task;
use crate::waiting::Waiting;

/// Comparison window for noisy counts: differences of two stay below 2^31 unless noise exceeds a
/// thousand times the largest sigma that policy allows.
const COUNT_WINDOW: u32 = 32;

/// A request that runs.
pub(crate) struct Active {
    pub(crate) waiting: Waiting,
    pub(crate) reservation: Reservation,
}

/// An agreed batch.
pub(crate) struct Batch<'a> {
    pub(crate) session: u64,
    pub(crate) run_id: RunId,
    pub(crate) task: &'a Task,
    pub(crate) models: &'a [Entry],
    pub(crate) active: Vec<Active>,
}

/// Runs a batch to its end. On a failure before this server's barrier message nothing has been
/// charged and nobody can have released anything; on a later one the charge stays.
pub(crate) fn run(link: &mut Link<'_>, context: &Context, batch: Batch<'_>) -> Result<(), Failure> {
    let Batch { session, run_id, task, models, mut active } = batch;
    let begin = Instant::now();
    let (released, traffic) = match evaluate(link, context, session, task, models, &active) {
        Ok(done) => done,
        Err(failure) => {
            abort(link, session, &failure);
            return Err(failure);
        }
    };
    let statistics = EvaluationStatistics {
        server_microseconds: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
        rounds: u64::from(traffic.rounds),
        bytes_sent: traffic.bytes_sent,
        batch_rows: active.iter().map(|active| active.waiting.rows).sum(),
    };
    let digests = released.digests(session);
    let answers = split(task, models, run_id, &active, released, &statistics);
    let (mut charges, mut finished) = (Vec::new(), Vec::new());
    for (active, answer) in active.drain(..).zip(answers) {
        charges.push((active.reservation, answer.to_stored()));
        finished.push((active.waiting, answer));
    }
    // Durable before this server says so to the others, who release only when all three have said so.
    let committed = context.ledger.commit(charges).and_then(|head| {
        let spent = context.ledger.spent(task.name(), task.policy.epoch)?;
        Ok((head, spent))
    });
    let (head, spent) = match committed {
        Ok(committed) => committed,
        Err(error) => {
            let failure = Failure::fault(format!("the ledger did not take the charge: {error}"));
            tracing::error!(server = %context.here, %error, "the ledger did not take a charge");
            abort(link, session, &failure);
            return Err(failure);
        }
    };
    let transcript = transcript_digest(task, session, &run_id, models, &finished);
    let barrier = |slot: usize| {
        Frame::Barrier(Barrier {
            batch: session,
            transcript_digest: transcript.to_vec().into(),
            component_digest: digests[slot].to_vec().into(),
            ledger_head_sequence: head.entries,
            ledger_head_hash: head.hash.to_vec().into(),
            spent_total_nano_rho: spent.total.rho.units(),
        })
    };
    link.send(Neighbour::Next, barrier(1))?;
    link.send(Neighbour::Previous, barrier(0))?;
    link.flush()?;
    for (neighbour, slot) in [(Neighbour::Next, 1), (Neighbour::Previous, 0)] {
        let theirs = link.receive(neighbour, "commit the batch", |frame| match frame {
            Frame::Barrier(barrier) if barrier.batch == session => Some(barrier),
            _ => None,
        })?;
        check_barrier(
            link,
            context,
            neighbour,
            &theirs,
            &transcript,
            &digests[slot],
            spent.total.rho.units(),
        )?;
    }
    let keys: Vec<_> = finished.iter().map(|(waiting, _)| waiting.key.clone()).collect();
    // The clients first: the note costs a flush of the disk and only spares a later repeat the way
    // through the other servers.
    finished.into_iter().for_each(|(waiting, answer)| waiting.finish(Ok(answer)));
    if let Err(error) = context.ledger.mark_released(&keys) {
        tracing::warn!(server = %context.here, %error, "could not note that results were released");
    }
    context.lane.count_batch();
    Ok(())
}

/// Tells the peers, as far as they can be reached.
fn abort(link: &mut Link<'_>, session: u64, failure: &Failure) {
    let reason = format!("{failure:?}");
    if link.send_both(Frame::Abort(v1::Abort { batch: session, reason })).is_ok() {
        let _ = link.flush();
    }
}

/// The multi-party computation: from input shares to the released components of all rows.
fn evaluate(
    link: &mut Link<'_>,
    context: &Context,
    session: u64,
    task: &Task,
    models: &[Entry],
    active: &[Active],
) -> Result<(ReleasedComponents, Traffic), Failure> {
    let fault = |error: &dyn std::fmt::Display| Failure::fault(error.to_string());
    let ensemble = ensemble(task, models).map_err(|error| fault(&error))?;
    let input = stack_inputs(task, active).map_err(|error| fault(&error))?;
    let rows = input.dim().0;
    let keys = link.lane.pairwise_keys().map_err(|error| link.fail(&error, "share a key"))?;
    let patience = link.patience();
    let failed = |error: MpcError| {
        let reason = error.to_string();
        context.lane.note_error(reason.clone());
        Failure::fault(reason)
    };
    let mut noise = Vec::with_capacity(rows * task.policy.bins);
    for _ in 0..rows {
        let share = task.noise.take().map_err(|error| fault(&error))?;
        noise.extend_from_slice(share.values());
    }
    let channel = LaneChannel::new(link.lane, session, patience);
    let mut party = Party::new(context.here, session, &keys, channel);
    let votes = histogram(&mut party, &ensemble, &input).map_err(failed)?;
    let noised = votes.inject(&mut party, &noise).map_err(failed);
    noise.zeroize();
    let noised = noised?;
    let released = match task.policy.release {
        Release::Histogram => noised.components(),
        Release::Label => {
            noised.argmax(&mut party, PartyIndex::ALL[0], COUNT_WINDOW).map_err(failed)?.components()
        }
        other => return Err(Failure::fault(format!("this server does not know how to release {other:?}"))),
    };
    Ok((released, party.traffic().clone()))
}

/// The rows of all requests below each other.
fn stack_inputs(task: &Task, active: &[Active]) -> Result<Shares<Z64>, concilium_mpc::input::InputError> {
    let features = task.domain.features();
    let parts = active
        .iter()
        .map(|Active { waiting, .. }| {
            let rows = waiting.rows as usize;
            let matrix = |component: &concilium_mpc::input::Component| {
                let elements = component.expand::<Z64>(rows * features)?;
                Ok(Array2::from_shape_vec((rows, features), elements)
                    .expect("expanding gives as many elements as were asked for"))
            };
            Ok(Shares::new(matrix(&waiting.own)?, matrix(&waiting.next)?))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Shares::stack(&parts))
}

/// Cuts the batch's components into the requests' answers.
fn split(
    task: &Task,
    models: &[Entry],
    run_id: RunId,
    active: &[Active],
    released: ReleasedComponents,
    statistics: &EvaluationStatistics,
) -> Vec<Answer> {
    let (encoding, row_bytes) = match task.policy.release {
        Release::Label => (ResultEncoding::BooleanU16, 2),
        _ => (ResultEncoding::ArithmeticU64, 8 * task.policy.bins),
    };
    let owners = models.iter().map(|entry| &entry.key.owner).collect::<std::collections::BTreeSet<_>>().len();
    let mut start = 0;
    active
        .iter()
        .map(|active| {
            let Waiting { key, rows, .. } = &active.waiting;
            let range = start..start + *rows as usize * row_bytes;
            start = range.end;
            let receipt = v1::Receipt {
                task: key.task.clone(),
                epoch: key.epoch,
                request_id: key.request.0.to_vec().into(),
                release: task.wire_release().into(),
                rows: *rows,
                classes: task.policy.bins as u32,
                mechanism: Some(task.wire_mechanism()),
                charged_nano_rho: active.reservation.charge().cost().units(),
                caller_spent_nano_rho: 0,
                caller_cap_nano_rho: task.policy.cap_per_client.map(concilium_privacy::NanoRho::units),
                models: models.len() as u32,
                owners: owners as u32,
                model_set_digest: digest_of(models).to_vec().into(),
                encoding: encoding.into(),
                replayed: false,
                statistics: Some(*statistics),
            };
            let components = ReleasedComponents {
                own: released.own[range.clone()].to_vec(),
                next: released.next[range].to_vec(),
            };
            Answer { run: run_id, receipt, components }
        })
        .collect()
}

/// What this server believes was run: equal on all three.
fn transcript_digest(
    task: &Task,
    session: u64,
    run_id: &RunId,
    models: &[Entry],
    finished: &[(Waiting, Answer)],
) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("concilium v1 batch transcript");
    hasher.update(&task.digest).update(&session.to_le_bytes()).update(run_id).update(&digest_of(models));
    for (waiting, _) in finished {
        hasher.update(&waiting.public).update(&waiting.rows.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

fn check_barrier(
    link: &Link<'_>,
    context: &Context,
    neighbour: Neighbour,
    theirs: &Barrier,
    transcript: &[u8; 32],
    component: &[u8; 32],
    spent_nano_rho: u64,
) -> Result<(), Failure> {
    let peer = link.lane.index_of(neighbour);
    if theirs.transcript_digest[..] != transcript[..] {
        return Err(Failure::fault(format!("server {peer} ran another batch; nothing was released")));
    }
    if theirs.component_digest[..] != component[..] {
        return Err(Failure::fault(format!(
            "server {peer} holds another copy of the result's common component; nothing was released"
        )));
    }
    if theirs.spent_total_nano_rho != spent_nano_rho {
        tracing::error!(
            server = %context.here, peer, here = spent_nano_rho, there = theirs.spent_total_nano_rho,
            "the ledgers differ: a batch failed between two commits, or one ledger was restored from a copy"
        );
    }
    Ok(())
}
