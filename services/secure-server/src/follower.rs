//! The part of servers 1 and 2 in agreeing on a batch: they check, compare, judge and take part.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use concilium_mpc::{Neighbour, PartyIndex};
use concilium_privacy::{RequestId, RequestKey};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{
    Accepted, ComponentDigests, ModelState, Plan, PlanReply, PlannedRequest, Refusal, RequestVerdict, Start,
    request_verdict::Verdict,
};

use crate::answer::RunId;
use crate::batch::{Decision, Judgement, MODELS_MISSING, carry_out, judge};
use crate::context::Context;
use crate::link::{Failure, Link};
use crate::models::{Entry, digest_of, internal};
use crate::owners::{OWNERS_SPENT, check_limit, participants, unpaid};
use crate::progress::Step;
use crate::task::Task;
use crate::waiting::Waiting;

/// Most rows that a plan may hold, whatever the leader's configuration says.
const MAXIMUM_PLAN_ROWS: u64 = 4096;

/// Most requests of a plan.
const MAXIMUM_PLAN_REQUESTS: usize = 4096;

/// Servers 1 and 2: answers a plan and takes part in what the leader starts.
pub(crate) fn follow(link: &mut Link<'_>, context: &Context, plan: Plan) -> Result<(), Failure> {
    let run_id = RunId::try_from(&plan.run[..])
        .map_err(|_| Failure::fault("a plan's run id has the wrong length".to_owned()))?;
    let (task, session) = (plan.task.clone(), plan.batch);
    link.in_batch(&task, session, &run_id, |link| follow_plan(link, context, plan, run_id))
}

fn follow_plan(link: &mut Link<'_>, context: &Context, plan: Plan, run_id: RunId) -> Result<(), Failure> {
    link.steps.enter(Step::Plan);
    let leader = link.neighbour_of(PartyIndex::ALL[0]);
    let fellow = if leader == Neighbour::Next { Neighbour::Previous } else { Neighbour::Next };
    link.note_session(plan.batch)?;
    let prepared = match link.closing {
        None => prepare(context, &plan),
        Some(reason) => {
            let (peer, step) = (context.here.to_string(), reason.to_owned());
            Err(RpcError::PeerUnavailable { peer, step }.to_refusal())
        }
    };
    let keys = request_keys(&plan)?;
    let mut places: Vec<Option<Waiting>> = keys.iter().map(|key| context.room.take(key)).collect();
    // The component that both followers hold is number 2: server 1's next, server 2's own.
    let slot = usize::from(fellow == Neighbour::Next);
    let mine = places.iter().map(|place| {
        place.as_ref().map_or_else(Default::default, |waiting| waiting.digests[slot].to_vec().into())
    });
    link.send(
        fellow,
        Frame::ComponentDigests(ComponentDigests { batch: plan.batch, digests: mine.collect() }),
    )?;
    link.flush()?;
    link.steps.enter(Step::Digests);
    let theirs = link.receive_digests(fellow, plan.batch)?;
    let reply = |verdicts, refusal| Frame::PlanReply(PlanReply { batch: plan.batch, verdicts, refusal });
    let (task, models) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            link.send(leader, reply(Vec::new(), Some(refusal.clone())))?;
            link.flush()?;
            let _ = receive_start(link, leader, plan.batch)?;
            if [MODELS_MISSING, OWNERS_SPENT].contains(&refusal.reason.as_str()) {
                // The leader plans the same requests again, without these models or owners.
                places.into_iter().flatten().for_each(|waiting| context.room.put_back(waiting));
                return Ok(());
            }
            let error = RpcError::from_refusal(&refusal);
            places.into_iter().flatten().for_each(|waiting| waiting.finish(Err(error.clone())));
            return Ok(());
        }
    };
    let participants = participants(&models);
    let judged: Vec<Result<Judgement, RpcError>> = (0..keys.len())
        .map(|index| {
            let request = &plan.requests[index];
            let waiting = places[index].as_ref().ok_or_else(|| RpcError::PeerUnavailable {
                peer: context.here.to_string(),
                step: "it no longer has its part of the request".to_owned(),
            })?;
            check_same(context, request, waiting, slot, theirs.digests.get(index).map(|d| &d[..]))?;
            Ok(judge(context, &task, &models, &participants, waiting))
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
        let reservation_failed = |error| Judgement { held: None, reservation: Err(error) };
        if let Some(place) = place {
            waiting.push(place);
            judgements.push(judged.unwrap_or_else(reservation_failed));
            kept.push(decision);
        } else if !matches!(decision, Decision::Refuse(_)) {
            return Err(Failure::fault("the leader runs a request that is not here".to_owned()));
        }
    }
    let lane = start.lane as usize;
    carry_out(link, context, &task, models, plan.batch, run_id, lane, waiting, judgements, kept)
}

fn receive_start(link: &mut Link<'_>, leader: Neighbour, batch: u64) -> Result<Start, Failure> {
    link.steps.enter(Step::Start);
    link.receive(leader, Step::Start, |frame| match frame {
        Frame::Start(start) if start.batch == batch => Some(start),
        _ => None,
    })
}

fn verdict(index: usize, judged: &Result<Judgement, RpcError>) -> RequestVerdict {
    let (held, refusal) = match judged {
        Ok(judgement) => (judgement.held, judgement.reservation.as_ref().err()),
        Err(error) => (None, Some(error)),
    };
    let verdict = match refusal {
        Some(error) => Verdict::Refused(error.to_refusal()),
        None => Verdict::Accepted(Accepted {}),
    };
    let held_run = held.map(|run| run.to_vec()).unwrap_or_default().into();
    RequestVerdict { index: index as u32, held_run, verdict: Some(verdict) }
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
fn prepare(context: &Context, plan: &Plan) -> Result<(Arc<Task>, Vec<Entry>), Refusal> {
    let refuse = |error: RpcError| error.to_refusal();
    let task = context.tasks.get(&plan.task).map_err(refuse)?;
    context.tasks.check_agreement(task).map_err(refuse)?;
    context.watch.check(task.name()).map_err(refuse)?;
    let rows: u64 = plan.requests.iter().map(|request| u64::from(request.rows)).sum();
    if rows > MAXIMUM_PLAN_ROWS {
        let what = "rows of a batch".to_owned();
        return Err(refuse(RpcError::TooLarge { what, limit: MAXIMUM_PLAN_ROWS, got: rows }));
    }
    let names: BTreeSet<_> = plan.models.iter().map(|planned| (&planned.owner, &planned.model)).collect();
    if names.len() != plan.models.len() {
        return Err(refuse(internal("the plan names a model twice")));
    }
    // Any version that is ready here may vote; which one is the leader's choice.
    let ready = context.models.list(|key| key.task == plan.task);
    let (mut models, mut missing) = (Vec::new(), Vec::new());
    for planned in &plan.models {
        let same = |entry: &&Entry| {
            entry.key.owner == planned.owner
                && entry.key.model == planned.model
                && entry.version == planned.version
                && entry.content_digest == planned.content_digest[..]
                && entry.state == ModelState::Ready
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
    check_limit(task, &models).map_err(refuse)?;
    let unpaid = unpaid(context, task, &models, rows).map_err(refuse)?;
    if !unpaid.owners.is_empty() {
        let owners: Vec<_> = unpaid.owners.into_iter().collect();
        return Err(Refusal {
            reason: OWNERS_SPENT.to_owned(),
            message: format!(
                "the own budgets of these owners do not pay on {}: {}",
                context.here,
                owners.join(", ")
            ),
            metadata: [("owners".to_owned(), owners.join(","))].into_iter().collect(),
        });
    }
    Ok((Arc::clone(task), models))
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
    if waiting.digests[1 - slot] != request.component_digest[..] {
        let component = if slot == 1 { context.here } else { context.here.next() };
        return Err(inconsistent(component.number()));
    }
    match theirs {
        // The fellow has no part of the request; it says so itself.
        Some([]) | None => Ok(()),
        Some(theirs) if theirs == waiting.digests[slot] => Ok(()),
        Some(_) => Err(inconsistent(2)),
    }
}
