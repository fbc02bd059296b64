//! Server 0's part in agreeing on a batch: it plans, decides and starts.

use std::collections::BTreeSet;
use std::sync::Arc;

use concilium_mpc::Neighbour;
use concilium_privacy::RequestKey;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{
    Incomplete, Plan, PlanReply, PlannedModel, PlannedRequest, Refusal, RequestRefusal, Start,
    request_verdict::Verdict,
};
use rand::TryRng;
use rand::rngs::SysRng;

use crate::answer::RunId;
use crate::arrivals::to_wire;
use crate::batch::{Decision, Judgement, MODELS_MISSING, carry_out, judge};
use crate::context::Context;
use crate::evaluator::wait_for_lane;
use crate::link::{Failure, Link};
use crate::models::{Entry, digest_of, internal};
use crate::owners::{OWNERS_SPENT, participants, unpaid, within_limit};
use crate::progress::Step;
use crate::task::Task;
use crate::waiting::Waiting;

/// How often a leader takes older versions of models, or leaves models out, because a peer does not have
/// them ready.
const PLANNING_ATTEMPTS: usize = 4;

/// Server 0: plans one batch of waiting requests, agrees on it and begins it, for which a lane must be free.
/// Returns how many they were.
pub(crate) fn lead(link: &mut Link<'_>, context: &Context) -> Result<usize, Failure> {
    let arrived = |key: &RequestKey| link.arrivals.everywhere(key);
    let Some((task, keys)) = context.room.next_batch(context.limits.batch_rows, arrived) else {
        return Ok(0);
    };
    keys.iter().for_each(|key| link.arrivals.forget(key));
    // Whatever ends the planning early drops these, which tells the clients to ask again.
    let mut pending: Vec<Waiting> = keys.iter().filter_map(|key| context.room.take(key)).collect();
    let requests = pending.len();
    if requests == 0 {
        return Ok(0);
    }
    let prepared = context.tasks.get(&task).cloned().and_then(|task| {
        context.tasks.check_agreement(&task)?;
        context.watch.check(task.name())?;
        Ok(task)
    });
    let task = match prepared {
        Ok(task) => task,
        Err(error) => {
            refuse_all(&mut pending, &error);
            return Ok(requests);
        }
    };
    lead_requests(link, context, &task, pending)?;
    Ok(requests)
}

/// Plans and runs these requests together, or one by one where all together are too much for the owners.
fn lead_requests(
    link: &mut Link<'_>,
    context: &Context,
    task: &Arc<Task>,
    mut pending: Vec<Waiting>,
) -> Result<(), Failure> {
    let mut models = within_limit(context.models.ready(task.name()), task.policy.models_per_owner);
    let rows = pending.iter().map(|waiting| u64::from(waiting.rows)).sum();
    let unpaid = match unpaid(context, task, &models, rows) {
        Ok(unpaid) => unpaid,
        Err(error) => {
            refuse_all(&mut pending, &error);
            return Ok(());
        }
    };
    models.retain(|entry| !unpaid.owners.contains(&entry.key.owner));
    if models.is_empty() && !unpaid.owners.is_empty() {
        if pending.len() > 1 {
            return pending.into_iter().try_for_each(|waiting| {
                wait_for_lane(link)?;
                lead_requests(link, context, task, vec![waiting])
            });
        }
        let keys: Vec<_> = pending.iter().map(|waiting| waiting.key.clone()).collect();
        refuse_all(&mut pending, &unpaid.refusal(task));
        // The others' parts would wait in vain.
        link.send_both(Frame::Incomplete(Incomplete { requests: to_wire(keys) }))?;
        return link.flush();
    }
    for _ in 0..PLANNING_ATTEMPTS {
        if models.is_empty() {
            refuse_all(&mut pending, &RpcError::NoModels { task: task.name().to_owned() });
            return Ok(());
        }
        let session = link.next_session();
        let run_id = new_run_id()?;
        let attempt =
            |link: &mut Link<'_>| lead_attempt(link, context, session, run_id, task, &models, &mut pending);
        match link.in_batch(task.name(), session, &run_id, attempt)? {
            Outcome::Done => return Ok(()),
            // Another server's ledger has charged them more; they leave this batch.
            Outcome::OwnersSpent(owners) => models.retain(|entry| !owners.contains(&entry.key.owner)),
            Outcome::ModelsMissing(missing) => {
                models = models.into_iter().filter_map(|entry| held(context, entry, &missing)).collect();
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

/// A version that the other servers have ready: this one, or the version before it. A crash in the middle
/// of an activation leaves the newest on some servers only.
fn held(context: &Context, entry: Entry, missing: &BTreeSet<(String, String)>) -> Option<Entry> {
    if missing.contains(&(entry.key.owner.clone(), entry.key.model.clone())) {
        return context.models.ready_before(&entry.key, entry.version);
    }
    Some(entry)
}

/// A name for one attempt at a batch. It is no secret.
pub(crate) fn new_run_id() -> Result<RunId, Failure> {
    let mut run_id = RunId::default();
    let failed = |error| Failure::fault(format!("no name for the batch: {error}"));
    SysRng.try_fill_bytes(&mut run_id).map_err(failed)?;
    Ok(run_id)
}

/// Answers all of `waiting` with the same refusal.
fn refuse_all(waiting: &mut Vec<Waiting>, error: &RpcError) {
    waiting.drain(..).for_each(|waiting| waiting.finish(Err(error.clone())));
}

enum Outcome {
    Done,
    ModelsMissing(BTreeSet<(String, String)>),
    OwnersSpent(BTreeSet<String>),
}

fn lead_attempt(
    link: &mut Link<'_>,
    context: &Context,
    batch: u64,
    run_id: RunId,
    task: &Arc<Task>,
    models: &[Entry],
    pending: &mut Vec<Waiting>,
) -> Result<Outcome, Failure> {
    link.steps.enter(Step::Plan);
    for neighbour in [Neighbour::Next, Neighbour::Previous] {
        // Component i + 1 is shared with the next server, component i with the previous one.
        let slot = usize::from(neighbour == Neighbour::Next);
        let plan = plan(batch, &run_id, task, models, pending, slot);
        link.send(neighbour, Frame::Plan(plan))?;
    }
    link.flush()?;
    let participants = participants(models);
    let judgements: Vec<_> =
        pending.iter().map(|waiting| judge(context, task, models, &participants, waiting)).collect();
    let replies = [Neighbour::Next, Neighbour::Previous].map(|neighbour| {
        link.receive(neighbour, Step::Plan, |frame| match frame {
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
        if refusal.reason == OWNERS_SPENT {
            let owners = refusal.metadata.get("owners").map(String::as_str).unwrap_or_default();
            return Ok(Outcome::OwnersSpent(owners.split(',').map(str::to_owned).collect()));
        }
        refuse_all(pending, &RpcError::from_refusal(refusal));
        return Ok(Outcome::Done);
    }
    let decisions = decide(&judgements, &replies)?;
    let lane = link.underway.free_lane().ok_or_else(|| Failure::fault("no lane is free".to_owned()))?;
    let start = Start {
        batch,
        lane: lane as u32,
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
    let (models, waiting) = (models.to_vec(), std::mem::take(pending));
    carry_out(link, context, task, models, batch, run_id, lane, waiting, judgements, decisions)?;
    Ok(Outcome::Done)
}

fn positions(decisions: &[Decision], wanted: impl Fn(&Decision) -> bool) -> Vec<u32> {
    let chosen = decisions.iter().enumerate().filter(|(_, decision)| wanted(decision));
    chosen.map(|(index, _)| index as u32).collect()
}

fn plan(batch: u64, run_id: &RunId, task: &Task, models: &[Entry], waiting: &[Waiting], slot: usize) -> Plan {
    Plan {
        batch,
        run: run_id.to_vec().into(),
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
                version: entry.version,
            })
            .collect(),
        requests: waiting
            .iter()
            .map(|waiting| PlannedRequest {
                client: waiting.key.client.clone(),
                request_id: waiting.key.request.0.to_vec().into(),
                digest: waiting.public.to_vec().into(),
                rows: waiting.rows,
                component_digest: waiting.digests[slot].to_vec().into(),
            })
            .collect(),
    }
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
        // Results of different runs, which crashes can leave behind, do not fit together.
        if let Some(run) = judgement.held
            && verdicts.iter().all(|verdict| verdict.held_run[..] == run)
        {
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

fn parse_missing(refusal: &Refusal) -> BTreeSet<(String, String)> {
    let models = refusal.metadata.get("models").map(String::as_str).unwrap_or_default();
    let pairs = models.split(',').filter_map(|pair| pair.split_once('/'));
    pairs.map(|(owner, model)| (owner.to_owned(), model.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use concilium_rpc::v1::{Accepted, RequestVerdict};

    use super::*;

    fn judgement(held: Option<RunId>) -> Judgement {
        // What a request that can't run anew says; whether it is replayed does not depend on it.
        Judgement { held, reservation: Err(RpcError::InProgress { request_id: "0".to_owned() }) }
    }

    fn reply(held: Option<RunId>) -> PlanReply {
        let held_run = held.map(|run| run.to_vec()).unwrap_or_default().into();
        let verdict = RequestVerdict { index: 0, held_run, verdict: Some(Verdict::Accepted(Accepted {})) };
        PlanReply { batch: 1, verdicts: vec![verdict], refusal: None }
    }

    fn replays(held: [Option<RunId>; 3]) -> bool {
        let replies = [reply(held[1]), reply(held[2])];
        let decisions = decide(&[judgement(held[0])], &replies).expect("one verdict for one request");
        matches!(decisions[..], [Decision::Replay])
    }

    #[test]
    fn only_results_of_one_run_on_all_servers_are_replayed() {
        let (first, second) = (Some([1; 16]), Some([2; 16]));
        assert!(replays([first, first, first]));
        assert!(!replays([first, first, second]));
        assert!(!replays([second, first, first]));
        assert!(!replays([first, first, None]));
        assert!(!replays([None, None, None]));
    }

    #[test]
    fn a_reply_that_judges_another_number_of_requests_ends_the_batch() {
        let mut short = reply(None);
        short.verdicts.clear();
        assert!(decide(&[judgement(None)], &[reply(None), short]).is_err());
    }
}
