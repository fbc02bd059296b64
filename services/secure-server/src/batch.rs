//! What leader and followers of a batch have in common.
//!
//! Server 0 leads ([`crate::leader`]), the others follow ([`crate::follower`]). Nothing here is
//! secret: keys, digests, verdicts. Digests of a component go directly between its two holders: a
//! third server that knows the two other components could otherwise confirm a guess of the input.

use std::sync::Arc;
use std::time::Instant;

use concilium_privacy::{Charge, ContentDigest, LedgerError, Lookup, Mechanism, Participant, Reservation};
use concilium_rpc::status::RpcError;
use tracing::Span;

use crate::answer::{Answer, RunId};
use crate::context::Context;
use crate::kept::{ledger_error, replay};
use crate::link::{Failure, Link};
use crate::models::Entry;
use crate::run::{Active, Batch};
use crate::self_test::settle;
use crate::task::Task;
use crate::waiting::Waiting;

/// Reason of a refusal because of models that the refusing server does not have ready.
pub(crate) const MODELS_MISSING: &str = "MODELS_MISSING";

/// What this server says about one request.
pub(crate) struct Judgement {
    /// The run whose result is committed and kept here.
    pub(crate) held: Option<RunId>,
    /// The reserved cost, or why the request can't run (anew).
    pub(crate) reservation: Result<Reservation, RpcError>,
}

/// Looks the request up and reserves its cost, on which the models of `participants` vote.
pub(crate) fn judge(
    context: &Context,
    task: &Task,
    models: &[Entry],
    participants: &[Participant],
    waiting: &Waiting,
) -> Judgement {
    let held = match context.ledger.lookup(&waiting.key, &waiting.content) {
        Ok(Lookup::Held { result, released }) => match Answer::from_stored(&result) {
            Ok(answer) if released => {
                let already = RpcError::InProgress { request_id: waiting.key.request.to_string() };
                return Judgement { held: Some(answer.run), reservation: Err(already) };
            }
            Ok(answer) => Some(answer.run),
            Err(error) => return Judgement { held: None, reservation: Err(error) },
        },
        Ok(Lookup::New) => None,
        Err(error) => return Judgement { held: None, reservation: Err(ledger_error(error)) },
    };
    if let Err(error) = check_threshold(task, models.len()) {
        return Judgement { held, reservation: Err(error) };
    }
    let charge = Charge::new(waiting.key.clone(), waiting.content, waiting.rows, &task.policy, participants);
    let reservation = charge
        .and_then(|charge| {
            context.ledger.reserve(&[charge]).pop().unwrap_or_else(|| unreachable_reserve(waiting))
        })
        .map_err(ledger_error);
    Judgement { held, reservation }
}

/// Refuses a request that only noise could answer: its threshold is above the number of models.
fn check_threshold(task: &Task, models: usize) -> Result<(), RpcError> {
    let models = u32::try_from(models).unwrap_or(u32::MAX);
    match task.policy.threshold {
        Some(threshold) if threshold.votes > models => Err(RpcError::TooFewModels {
            task: task.name().to_owned(),
            threshold: threshold.votes,
            models,
            noise: match threshold.mechanism {
                Mechanism::DiscreteGaussian { sigma } => format!("sigma {sigma} votes"),
                Mechanism::DiscreteLaplace { scale } => format!("scale {scale} votes"),
                _ => "unknown".to_owned(),
            },
        }),
        _ => Ok(()),
    }
}

/// `reserve` gives one result for each charge; a ledger that does not is refused like a busy one.
fn unreachable_reserve(waiting: &Waiting) -> Result<Reservation, LedgerError> {
    Err(LedgerError::InProgress { key: waiting.key.clone() })
}

/// What happens with one request.
pub(crate) enum Decision {
    /// It is evaluated.
    Run,
    /// All three servers hold its result: each releases what it holds.
    Replay,
    /// It is refused.
    Refuse(RpcError),
}

/// All servers: answers what is refused or replayed and begins the rest on a lane.
#[allow(clippy::too_many_arguments)]
pub(crate) fn carry_out(
    link: &mut Link<'_>,
    context: &Context,
    task: &Arc<Task>,
    models: Vec<Entry>,
    session: u64,
    run_id: RunId,
    lane: usize,
    waiting: Vec<Waiting>,
    judgements: Vec<Judgement>,
    decisions: Vec<Decision>,
) -> Result<(), Failure> {
    let mut active = Vec::new();
    for ((waiting, judgement), decision) in waiting.into_iter().zip(judgements).zip(decisions) {
        match (decision, judgement.reservation) {
            (Decision::Run, Ok(reservation)) => active.push(Active { waiting, reservation }),
            (Decision::Run, Err(error)) => {
                // The leader may run only what every server has accepted.
                waiting.finish(Err(error));
                return Err(Failure::fault("the leader runs a request that was refused here".to_owned()));
            }
            (Decision::Replay, _) => {
                let outcome = replay(context, &waiting);
                waiting.finish(outcome);
            }
            (Decision::Refuse(error), _) => waiting.finish(Err(error)),
        }
    }
    if active.is_empty() {
        // All three have taken the plan, so they have these versions ready.
        settle(context, &models);
        return Ok(());
    }
    // What follows belongs to the batch and no more to the last step of agreeing on it.
    link.steps.end();
    let (task, span) = (Arc::clone(task), Span::current());
    let (planned, began) = (link.planned, Instant::now());
    let batch = Batch { session, run_id, task, models, active, span, planned, began };
    link.underway.begin(context, lane, batch)
}

/// The digest of everything that a server was sent for a request; a repeat must have the same.
pub(crate) fn content_digest(public: &[u8; 32], digests: &[[u8; 32]; 2]) -> ContentDigest {
    let mut hasher = blake3::Hasher::new_derive_key("concilium v1 request content");
    hasher.update(public).update(&digests[0]).update(&digests[1]);
    ContentDigest(*hasher.finalize().as_bytes())
}
