//! How the three servers agree on a batch.
//!
//! Server 0 leads. Nothing here is secret: keys, digests, verdicts. Digests of a component go
//! directly between its two holders: a third server that knows the two other components could
//! otherwise confirm a guess of the input.

use std::collections::{BTreeMap, BTreeSet};

use concilium_mpc::{Neighbour, PartyIndex};
use concilium_privacy::{Charge, ContentDigest, LedgerError, Lookup, RequestId, RequestKey, Reservation};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{
    Accepted, ComponentDigests, Plan, PlanReply, PlannedModel, PlannedRequest, Refusal, RequestRefusal,
    RequestVerdict, Start, request_verdict::Verdict,
};

use crate::answer::Answer;
use crate::context::Context;
use crate::evaluator::{Failure, Link};
use crate::models::{Entry, internal, model_set_digest};
use crate::run::{Active, Batch, run};
use crate::task::Task;
use crate::waiting::Waiting;

/// Most rows that a plan may hold, whatever the leader's configuration says.
const MAXIMUM_PLAN_ROWS: u64 = 4096;
/// Most requests of a plan.
const MAXIMUM_PLAN_REQUESTS: usize = 4096;
/// How often a leader leaves models out that a peer does not have ready yet.
const PLANNING_ATTEMPTS: usize = 3;
/// Reason of a refusal because of models that the refusing server does not have ready.
const MODELS_MISSING: &str = "MODELS_MISSING";

/// What this server says about one request.
struct Judgement {
    /// Set when the request was committed before and its result is kept.
    held: bool,
    /// The reserved cost, or why the request can't run (anew).
    reservation: Result<Reservation, RpcError>,
}

/// Looks the request up and reserves its cost.
fn judge(context: &Context, task: &Task, waiting: &Waiting) -> Judgement {
    let held = match context.ledger.lookup(&waiting.key, &waiting.content) {
        Ok(Lookup::Held { released: true, .. }) => {
            let already = RpcError::InProgress { request_id: waiting.key.request.to_string() };
            return Judgement { held: true, reservation: Err(already) };
        }
        Ok(Lookup::Held { .. }) => true,
        Ok(Lookup::New) => false,
        Err(error) => return Judgement { held: false, reservation: Err(ledger_error(error)) },
    };
    let charge = Charge::new(waiting.key.clone(), waiting.content, waiting.rows, &task.policy);
    let reservation = charge
        .and_then(|charge| {
            context.ledger.reserve(&[charge]).pop().unwrap_or_else(|| unreachable_reserve(waiting))
        })
        .map_err(ledger_error);
    Judgement { held, reservation }
}

/// `reserve` gives one result for each charge; a ledger that does not is refused like a busy one.
fn unreachable_reserve(waiting: &Waiting) -> Result<Reservation, LedgerError> {
    Err(LedgerError::InProgress { key: waiting.key.clone() })
}

/// How an error of the ledger is told to the client.
pub(crate) fn ledger_error(error: LedgerError) -> RpcError {
    match error {
        LedgerError::Refused(refusal) => RpcError::BudgetExhausted {
            task: refusal.task.clone(),
            epoch: refusal.epoch,
            cap: refusal.cap.to_string(),
            needed_nano_rho: refusal.needed.units(),
            left_nano_rho: refusal.left.units(),
        },
        LedgerError::Conflict { key } | LedgerError::ResultExpired { key } => {
            RpcError::RequestConflict { request_id: key.request.to_string() }
        }
        LedgerError::InProgress { key } | LedgerError::AlreadyReleased { key } => {
            RpcError::InProgress { request_id: key.request.to_string() }
        }
        other => internal(other),
    }
}

/// Server 0: plans, agrees and runs one batch of waiting requests.
pub(crate) fn lead(link: &mut Link<'_>, context: &Context) -> Result<(), Failure> {
    let arrived = |key: &RequestKey| link.arrivals.everywhere(key);
    let Some((task, keys)) = context.room.next_batch(context.limits.batch_rows, arrived) else {
        return Ok(());
    };
    keys.iter().for_each(|key| link.arrivals.forget(key));
    // Whatever ends the planning early drops these, which tells the clients to ask again.
    let mut pending: Vec<Waiting> = keys.iter().filter_map(|key| context.room.take(key)).collect();
    if pending.is_empty() {
        return Ok(());
    }
    let prepared = context.tasks.get(&task).cloned().and_then(|task| {
        context.tasks.check_agreement(&task)?;
        Ok(task)
    });
    let task = match prepared {
        Ok(task) => task,
        Err(error) => {
            refuse_all(&mut pending, &error);
            return Ok(());
        }
    };
    let mut models = context.models.ready(task.name());
    for _ in 0..PLANNING_ATTEMPTS {
        if models.is_empty() {
            refuse_all(&mut pending, &RpcError::NoModels { task: task.name().to_owned() });
            return Ok(());
        }
        match lead_attempt(link, context, &task, &models, &mut pending)? {
            Outcome::Done => return Ok(()),
            Outcome::ModelsMissing(missing) => {
                models.retain(|entry| !missing.contains(&(entry.key.owner.clone(), entry.key.model.clone())));
            }
        }
    }
    let changing = RpcError::PeerUnavailable {
        peer: "another server".to_owned(),
        step: "the servers' model sets are changing".to_owned(),
    };
    refuse_all(&mut pending, &changing);
    Ok(())
}

/// Answers all of `waiting` with the same refusal.
fn refuse_all(waiting: &mut Vec<Waiting>, error: &RpcError) {
    waiting.drain(..).for_each(|waiting| waiting.finish(Err(error.clone())));
}

enum Outcome {
    Done,
    ModelsMissing(BTreeSet<(String, String)>),
}

fn lead_attempt(
    link: &mut Link<'_>,
    context: &Context,
    task: &Task,
    models: &[Entry],
    pending: &mut Vec<Waiting>,
) -> Result<Outcome, Failure> {
    let batch = link.next_session();
    let digests: Vec<_> = pending.iter().map(Waiting::component_digests).collect();
    for neighbour in [Neighbour::Next, Neighbour::Previous] {
        // Component i + 1 is shared with the next server, component i with the previous one.
        let slot = usize::from(neighbour == Neighbour::Next);
        let plan = plan(batch, task, models, pending, &digests, slot);
        link.send(neighbour, Frame::Plan(plan))?;
    }
    link.flush()?;
    let judgements: Vec<_> = pending.iter().map(|waiting| judge(context, task, waiting)).collect();
    let replies = [Neighbour::Next, Neighbour::Previous].map(|neighbour| {
        link.receive(neighbour, "answer the plan", |frame| match frame {
            Frame::PlanReply(reply) if reply.batch == batch => Some(reply),
            _ => None,
        })
    });
    let [next, previous] = replies;
    let replies = [next?, previous?];
    if let Some(refusal) = replies.iter().find_map(|reply| reply.refusal.as_ref()) {
        link.send_both(Frame::Start(Start { batch, ..Start::default() }))?;
        link.flush()?;
        if refusal.reason == MODELS_MISSING {
            return Ok(Outcome::ModelsMissing(parse_missing(refusal)));
        }
        refuse_all(pending, &RpcError::from_refusal(refusal));
        return Ok(Outcome::Done);
    }
    let decisions = decide(&judgements, &replies)?;
    let start = Start {
        batch,
        accepted: positions(&decisions, |decision| matches!(decision, Decision::Run)),
        replayed: positions(&decisions, |decision| matches!(decision, Decision::Replay)),
        refused: decisions
            .iter()
            .enumerate()
            .filter_map(|(index, decision)| match decision {
                Decision::Refuse(error) => {
                    Some(RequestRefusal { index: index as u32, refusal: Some(error.to_refusal()) })
                }
                _ => None,
            })
            .collect(),
    };
    link.send_both(Frame::Start(start))?;
    link.flush()?;
    let waiting = std::mem::take(pending);
    carry_out(link, context, task, models, batch, waiting, judgements, decisions)?;
    Ok(Outcome::Done)
}

fn positions(decisions: &[Decision], wanted: impl Fn(&Decision) -> bool) -> Vec<u32> {
    let chosen = decisions.iter().enumerate().filter(|(_, decision)| wanted(decision));
    chosen.map(|(index, _)| index as u32).collect()
}

fn plan(
    batch: u64,
    task: &Task,
    models: &[Entry],
    waiting: &[Waiting],
    digests: &[[[u8; 32]; 2]],
    slot: usize,
) -> Plan {
    Plan {
        batch,
        task: task.name().to_owned(),
        epoch: task.policy.epoch,
        policy_digest: task.digest.to_vec().into(),
        model_set_digest: digest_of(models).to_vec().into(),
        models: models
            .iter()
            .map(|entry| PlannedModel {
                owner: entry.key.owner.clone(),
                model: entry.key.model.clone(),
                content_digest: entry.content_digest.to_vec().into(),
            })
            .collect(),
        requests: waiting
            .iter()
            .zip(digests)
            .map(|(waiting, digests)| PlannedRequest {
                client: waiting.key.client.clone(),
                request_id: waiting.key.request.0.to_vec().into(),
                digest: waiting.public.to_vec().into(),
                rows: waiting.rows,
                component_digest: digests[slot].to_vec().into(),
            })
            .collect(),
    }
}

/// The digest of a model set.
pub(crate) fn digest_of(models: &[Entry]) -> [u8; 32] {
    model_set_digest(
        models.iter().map(|entry| {
            (entry.key.owner.as_str(), entry.key.model.as_str(), entry.content_digest.as_slice())
        }),
    )
}

/// What happens with one request.
enum Decision {
    /// It is evaluated.
    Run,
    /// All three servers hold its result: each releases what it holds.
    Replay,
    /// It is refused.
    Refuse(RpcError),
}

/// Server 0's decision on every request, from its own judgement and the two replies.
fn decide(judgements: &[Judgement], replies: &[PlanReply; 2]) -> Result<Vec<Decision>, Failure> {
    for reply in replies {
        if reply.verdicts.len() != judgements.len() {
            let due = judgements.len();
            return Err(Failure::fault(format!("a peer judged {} of {due} requests", reply.verdicts.len())));
        }
    }
    let decide = |(index, judgement): (usize, &Judgement)| {
        let verdicts = replies.each_ref().map(|reply| &reply.verdicts[index]);
        if judgement.held && verdicts.iter().all(|verdict| verdict.held) {
            return Decision::Replay;
        }
        if let Err(error) = &judgement.reservation {
            return Decision::Refuse(error.clone());
        }
        let refusal = verdicts.iter().find_map(|verdict| match &verdict.verdict {
            Some(Verdict::Accepted(_)) => None,
            Some(Verdict::Refused(refusal)) => Some(RpcError::from_refusal(refusal)),
            None => Some(internal("a peer gave no verdict")),
        });
        refusal.map_or(Decision::Run, Decision::Refuse)
    };
    Ok(judgements.iter().enumerate().map(decide).collect())
}

/// All servers: answers what is refused or replayed and evaluates the rest.
#[allow(clippy::too_many_arguments)]
fn carry_out(
    link: &mut Link<'_>,
    context: &Context,
    task: &Task,
    models: &[Entry],
    batch: u64,
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
        return Ok(());
    }
    run(link, context, Batch { session: batch, task, models, active })
}

/// The kept result of a request that all three servers have committed.
pub(crate) fn replay(context: &Context, waiting: &Waiting) -> Result<Answer, RpcError> {
    match context.ledger.lookup(&waiting.key, &waiting.content).map_err(ledger_error)? {
        Lookup::Held { result, .. } => {
            let answer = Answer::from_stored(&result)?;
            context.ledger.mark_released(std::slice::from_ref(&waiting.key)).map_err(ledger_error)?;
            Ok(answer)
        }
        Lookup::New => Err(internal("the kept result is gone")),
    }
}

/// Servers 1 and 2: answers a plan and takes part in what the leader starts.
pub(crate) fn follow(link: &mut Link<'_>, context: &Context, plan: Plan) -> Result<(), Failure> {
    let leader = link.neighbour_of(PartyIndex::ALL[0]);
    let fellow = if leader == Neighbour::Next { Neighbour::Previous } else { Neighbour::Next };
    link.note_session(plan.batch)?;
    let prepared = prepare(context, &plan);
    let keys = request_keys(&plan)?;
    let mut places: Vec<Option<Waiting>> = keys.iter().map(|key| context.room.take(key)).collect();
    // The component that both followers hold is number 2: server 1's next, server 2's own.
    let slot = usize::from(fellow == Neighbour::Next);
    let digests: Vec<_> = places.iter().map(|place| place.as_ref().map(Waiting::component_digests)).collect();
    let mine =
        digests.iter().map(|digests| digests.map_or_else(Default::default, |d| d[slot].to_vec().into()));
    link.send(
        fellow,
        Frame::ComponentDigests(ComponentDigests { batch: plan.batch, digests: mine.collect() }),
    )?;
    link.flush()?;
    let theirs = link.receive_digests(fellow, plan.batch)?;
    let reply = |verdicts, refusal| Frame::PlanReply(PlanReply { batch: plan.batch, verdicts, refusal });
    let (task, models) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            link.send(leader, reply(Vec::new(), Some(refusal.clone())))?;
            link.flush()?;
            let _ = receive_start(link, leader, plan.batch)?;
            if refusal.reason == MODELS_MISSING {
                // The leader plans the same requests again, without these models.
                places.into_iter().flatten().for_each(|waiting| context.room.put_back(waiting));
                return Ok(());
            }
            let error = RpcError::from_refusal(&refusal);
            places.into_iter().flatten().for_each(|waiting| waiting.finish(Err(error.clone())));
            return Ok(());
        }
    };
    let judged: Vec<Result<Judgement, RpcError>> = (0..keys.len())
        .map(|index| {
            let request = &plan.requests[index];
            let waiting = places[index].as_ref().ok_or_else(|| RpcError::PeerUnavailable {
                peer: context.here.to_string(),
                step: "it no longer has its part of the request".to_owned(),
            })?;
            let digests = digests[index].unwrap_or_default();
            check_same(context, request, waiting, &digests, slot, theirs.digests.get(index).map(|d| &d[..]))?;
            Ok(judge(context, &task, waiting))
        })
        .collect();
    let verdicts = judged.iter().enumerate().map(|(index, judged)| verdict(index, judged)).collect();
    link.send(leader, reply(verdicts, None))?;
    link.flush()?;
    let start = receive_start(link, leader, plan.batch)?;
    if start.accepted.is_empty() && start.replayed.is_empty() && start.refused.is_empty() {
        // The other follower lacks models: the leader plans again.
        drop(judged);
        places.into_iter().flatten().for_each(|waiting| context.room.put_back(waiting));
        return Ok(());
    }
    let decisions = read_start(&start, keys.len())?;
    let (mut waiting, mut judgements, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for ((place, judged), decision) in places.iter_mut().map(Option::take).zip(judged).zip(decisions) {
        let reservation_failed = |error| Judgement { held: false, reservation: Err(error) };
        if let Some(place) = place {
            waiting.push(place);
            judgements.push(judged.unwrap_or_else(reservation_failed));
            kept.push(decision);
        } else if !matches!(decision, Decision::Refuse(_)) {
            return Err(Failure::fault("the leader runs a request that is not here".to_owned()));
        }
    }
    carry_out(link, context, &task, &models, plan.batch, waiting, judgements, kept)
}

fn receive_start(link: &mut Link<'_>, leader: Neighbour, batch: u64) -> Result<Start, Failure> {
    link.receive(leader, "start the batch", |frame| match frame {
        Frame::Start(start) if start.batch == batch => Some(start),
        _ => None,
    })
}

fn verdict(index: usize, judged: &Result<Judgement, RpcError>) -> RequestVerdict {
    let (held, refusal) = match judged {
        Ok(judgement) => (judgement.held, judgement.reservation.as_ref().err()),
        Err(error) => (false, Some(error)),
    };
    let verdict = match refusal {
        Some(error) => Verdict::Refused(error.to_refusal()),
        None => Verdict::Accepted(Accepted {}),
    };
    RequestVerdict { index: index as u32, held, verdict: Some(verdict) }
}

/// Reads the leader's decisions; every request must have exactly one.
fn read_start(start: &Start, requests: usize) -> Result<Vec<Decision>, Failure> {
    let mut decisions: BTreeMap<u32, Decision> = BTreeMap::new();
    let mut lengths = 0;
    let runs = start.accepted.iter().map(|&index| (index, Decision::Run));
    let replays = start.replayed.iter().map(|&index| (index, Decision::Replay));
    let refusals = start.refused.iter().map(|refused| {
        let refusal = refused.refusal.clone().unwrap_or_default();
        (refused.index, Decision::Refuse(RpcError::from_refusal(&refusal)))
    });
    for (index, decision) in runs.chain(replays).chain(refusals) {
        decisions.insert(index, decision);
        lengths += 1;
    }
    let complete = decisions.keys().copied().eq(0..requests as u32) && lengths == requests;
    if !complete {
        return Err(Failure::fault("the leader's start does not decide on every request once".to_owned()));
    }
    Ok(decisions.into_values().collect())
}

/// Checks a plan's task and models.
fn prepare(context: &Context, plan: &Plan) -> Result<(std::sync::Arc<Task>, Vec<Entry>), Refusal> {
    let refuse = |error: RpcError| error.to_refusal();
    let task = context.tasks.get(&plan.task).map_err(refuse)?;
    context.tasks.check_agreement(task).map_err(refuse)?;
    let rows: u64 = plan.requests.iter().map(|request| u64::from(request.rows)).sum();
    if rows > MAXIMUM_PLAN_ROWS {
        let what = "rows of a batch".to_owned();
        return Err(refuse(RpcError::TooLarge { what, limit: MAXIMUM_PLAN_ROWS, got: rows }));
    }
    let ready = context.models.ready(&plan.task);
    let (mut models, mut missing) = (Vec::new(), Vec::new());
    for planned in &plan.models {
        let same = |entry: &&Entry| {
            entry.key.owner == planned.owner
                && entry.key.model == planned.model
                && entry.content_digest == planned.content_digest[..]
        };
        match ready.iter().find(same) {
            Some(entry) => models.push(entry.clone()),
            None => missing.push(format!("{}/{}", planned.owner, planned.model)),
        }
    }
    if !missing.is_empty() {
        return Err(Refusal {
            reason: MODELS_MISSING.to_owned(),
            message: format!("{} does not have these models ready: {}", context.here, missing.join(", ")),
            metadata: [("models".to_owned(), missing.join(","))].into_iter().collect(),
        });
    }
    if digest_of(&models) != plan.model_set_digest[..] {
        return Err(refuse(internal("the plan's digest of the model set is wrong")));
    }
    Ok((std::sync::Arc::clone(task), models))
}

fn parse_missing(refusal: &Refusal) -> BTreeSet<(String, String)> {
    let models = refusal.metadata.get("models").map(String::as_str).unwrap_or_default();
    let pairs = models.split(',').filter_map(|pair| pair.split_once('/'));
    pairs.map(|(owner, model)| (owner.to_owned(), model.to_owned())).collect()
}

fn request_keys(plan: &Plan) -> Result<Vec<RequestKey>, Failure> {
    if plan.requests.is_empty() || plan.requests.len() > MAXIMUM_PLAN_REQUESTS {
        return Err(Failure::fault(format!("a plan has {} requests", plan.requests.len())));
    }
    plan.requests
        .iter()
        .map(|request| {
            let id = <[u8; 16]>::try_from(&request.request_id[..])
                .map_err(|_| Failure::fault("a planned request's id has the wrong length".to_owned()))?;
            Ok(RequestKey {
                task: plan.task.clone(),
                epoch: plan.epoch,
                client: request.client.clone(),
                request: RequestId(id),
            })
        })
        .collect()
}

/// Checks that the client sent this server the same request as the two others.
fn check_same(
    context: &Context,
    request: &PlannedRequest,
    waiting: &Waiting,
    digests: &[[u8; 32]; 2],
    slot: usize,
    theirs: Option<&[u8]>,
) -> Result<(), RpcError> {
    if waiting.public != request.digest[..] || waiting.rows != request.rows {
        return Err(RpcError::InvalidRequest {
            field: "header".to_owned(),
            problem: "was sent with different content to the servers".to_owned(),
        });
    }
    let inconsistent = |component: usize| RpcError::InconsistentDealer {
        dealer: format!("client `{}`", waiting.key.client),
        what: format!("request {}", waiting.key.request),
        component: component as u8,
    };
    // With the leader this server shares the component that it does not share with its fellow.
    if digests[1 - slot] != request.component_digest[..] {
        let component = if slot == 1 { context.here } else { context.here.next() };
        return Err(inconsistent(component.number()));
    }
    match theirs {
        // The fellow has no part of the request; it says so itself.
        Some([]) | None => Ok(()),
        Some(theirs) if theirs == digests[slot] => Ok(()),
        Some(_) => Err(inconsistent(2)),
    }
}

/// The digest of everything that a server was sent for a request; a repeat must have the same.
pub(crate) fn content_digest(public: &[u8; 32], digests: &[[u8; 32]; 2]) -> ContentDigest {
    let mut hasher = blake3::Hasher::new_derive_key("concilium v1 request content");
    hasher.update(public).update(&digests[0]).update(&digests[1]);
    ContentDigest(*hasher.finalize().as_bytes())
}
