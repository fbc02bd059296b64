//! The self-test of a version of a model: before it votes, the three servers evaluate it once together.
//!
//! Between two batches server 0 proposes the test, the servers compare all that they must hold alike, and
//! evaluate the version on public rows up to its votes, which are dropped. All that is opened is whether
//! every row got its one vote. A version that passes is ready on all three servers at the same point of
//! their sequence of batches, so the next batch may use it, and its predecessor is erased. One that does
//! not is rejected, on all three.

use std::sync::Arc;
use std::time::Instant;

use concilium_mpc::{Neighbour, PartyIndex};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{
    self, ComponentDigests, ModelState, ModelWaiting, Refusal, SelfTest, SelfTestFigures, SelfTestReply,
    SelfTestStart, SelfTestVerdict,
};

use crate::answer::RunId;
use crate::context::Context;
use crate::leader::new_run_id;
use crate::link::{Failure, Link};
use crate::models::{Entry, ModelKey};
use crate::progress::Step;
use crate::task::Task;

mod evaluate;
mod queue;

use evaluate::{Tested, evaluate};
pub use queue::{SelfTests, TestKey};

impl TestKey {
    fn to_wire(&self) -> ModelWaiting {
        let ModelKey { task, owner, model } = self.model.clone();
        ModelWaiting { task, owner, model, content_digest: self.content_digest.to_vec().into() }
    }

    /// Reads what another server named.
    pub(crate) fn from_wire(waiting: &ModelWaiting) -> Option<Self> {
        let ModelWaiting { task, owner, model, content_digest } = waiting.clone();
        let content_digest = content_digest[..].try_into().ok()?;
        Some(TestKey { model: ModelKey { task, owner, model }, content_digest })
    }

    /// What rejects the version on all three servers.
    fn rejection(&self, problem: String) -> RpcError {
        let ModelKey { task, model, .. } = self.model.clone();
        RpcError::ModelRejected { task, model, problem }
    }
}

/// A version that this server can test.
struct Candidate {
    task: Arc<Task>,
    entry: Entry,
}

impl Candidate {
    /// The version of this key, if it may be tested here.
    fn find(context: &Context, key: &TestKey) -> Result<Self, RpcError> {
        let task = context.tasks.get(&key.model.task)?;
        context.tasks.check_agreement(task)?;
        let entry = context.models.find(&key.model, &key.content_digest)?;
        match entry.state {
            ModelState::Staged | ModelState::Ready => Ok(Candidate { task: Arc::clone(task), entry }),
            ModelState::Rejected => Err(key.rejection(entry.reason)),
            _ => {
                let ModelKey { task, owner, model } = key.model.clone();
                Err(RpcError::UnknownModel { task, model, owner })
            }
        }
    }

    /// What is public about the version, for comparison.
    fn public_digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("concilium v1 self-test");
        hasher.update(&self.task.digest).update(&self.entry.public_digest);
        *hasher.finalize().as_bytes()
    }

    /// The digest of a component that this server and another one hold.
    fn component(&self, here: PartyIndex, component: PartyIndex) -> [u8; 32] {
        self.entry.component_digest(here, component.number() as u32).unwrap_or_default()
    }
}

/// Servers 1 and 2: tells server 0 which versions wait here.
pub(crate) fn announce(link: &mut Link<'_>, context: &Context) -> Result<(), Failure> {
    let leader = link.neighbour_of(PartyIndex::ALL[0]);
    let mut told = false;
    while let Some(key) = context.self_tests.take_due() {
        link.send(leader, Frame::ModelWaiting(key.to_wire()))?;
        told = true;
    }
    if told { link.flush() } else { Ok(()) }
}

/// Server 0: proposes and runs one test.
pub(crate) fn lead(link: &mut Link<'_>, context: &Context, key: &TestKey) -> Result<(), Failure> {
    let (session, run_id) = (link.next_session(), new_run_id()?);
    link.in_self_test(&key.model, session, &run_id, |link| lead_test(link, context, key, session, &run_id))
}

fn lead_test(
    link: &mut Link<'_>,
    context: &Context,
    key: &TestKey,
    session: u64,
    run_id: &RunId,
) -> Result<(), Failure> {
    link.steps.enter(Step::Plan);
    let here = context.here;
    let candidate = Candidate::find(context, key);
    let ModelWaiting { task, owner, model, content_digest } = key.to_wire();
    let (public, components) = match &candidate {
        Ok(candidate) => {
            let components = [candidate.component(here, here.next()), candidate.component(here, here)];
            (candidate.public_digest().to_vec(), components.map(|digest| digest.to_vec()))
        }
        Err(_) => Default::default(),
    };
    // Component i + 1 is shared with the next server, component i with the previous one.
    for (neighbour, component) in [Neighbour::Next, Neighbour::Previous].into_iter().zip(components) {
        let test = SelfTest {
            batch: session,
            run: run_id.to_vec().into(),
            task: task.clone(),
            owner: owner.clone(),
            model: model.clone(),
            content_digest: content_digest.clone(),
            public_digest: public.clone().into(),
            component_digest: component.into(),
        };
        link.send(neighbour, Frame::SelfTest(Box::new(test)))?;
    }
    link.flush()?;
    let replies = [Neighbour::Next, Neighbour::Previous].map(|neighbour| {
        link.receive(neighbour, Step::Plan, |frame| match frame {
            Frame::SelfTestReply(reply) if reply.batch == session => Some(reply),
            _ => None,
        })
    });
    let [next, previous] = replies;
    let replies = [next?, previous?].map(|reply| reply.refusal);
    let refusal = worst([candidate.as_ref().err().map(RpcError::to_refusal)].into_iter().chain(replies));
    link.send_both(Frame::SelfTestStart(SelfTestStart { batch: session, refusal: refusal.clone() }))?;
    link.flush()?;
    match (candidate, refusal) {
        (Ok(candidate), None) => run(link, context, key, &candidate, session, run_id),
        (_, refusal) => refuse(context, key, &refusal.unwrap_or_default()),
    }
}

/// Servers 1 and 2: answers a proposal and takes part in the test.
pub(crate) fn follow(link: &mut Link<'_>, context: &Context, test: SelfTest) -> Result<(), Failure> {
    let run_id = RunId::try_from(&test.run[..])
        .map_err(|_| Failure::fault("a self-test's run id has the wrong length".to_owned()))?;
    let waiting = ModelWaiting {
        task: test.task.clone(),
        owner: test.owner.clone(),
        model: test.model.clone(),
        content_digest: test.content_digest.clone(),
    };
    let key = TestKey::from_wire(&waiting)
        .ok_or_else(|| Failure::fault("a self-test's content digest has the wrong length".to_owned()))?;
    let session = test.batch;
    link.in_self_test(&key.model, session, &run_id, |link| follow_test(link, context, &key, &test, &run_id))
}

fn follow_test(
    link: &mut Link<'_>,
    context: &Context,
    key: &TestKey,
    test: &SelfTest,
    run_id: &RunId,
) -> Result<(), Failure> {
    link.steps.enter(Step::Plan);
    let (session, leader) = (test.batch, link.neighbour_of(PartyIndex::ALL[0]));
    let fellow = if leader == Neighbour::Next { Neighbour::Previous } else { Neighbour::Next };
    link.note_session(session)?;
    let candidate = Candidate::find(context, key);
    let common = PartyIndex::ALL[2];
    let mine = candidate.as_ref().map(|candidate| candidate.component(context.here, common).to_vec());
    let digests = vec![mine.clone().unwrap_or_default().into()];
    link.send(fellow, Frame::ComponentDigests(ComponentDigests { batch: session, digests }))?;
    link.flush()?;
    link.steps.enter(Step::Digests);
    let theirs = link.receive_digests(fellow, session)?;
    let theirs = theirs.digests.first().map(|digest| digest.to_vec()).unwrap_or_default();
    let candidate = candidate.and_then(|candidate| {
        // Who has refused sends nothing to compare with.
        let differs = |mine: &[u8], theirs: &[u8]| !theirs.is_empty() && mine != theirs;
        if differs(&candidate.public_digest(), &test.public_digest) {
            let problem = "the owner gave the servers different architectures, budgets, epochs or version \
                           numbers for one content digest";
            return Err(key.rejection(problem.to_owned()));
        }
        let led = if context.here == PartyIndex::ALL[1] { PartyIndex::ALL[1] } else { PartyIndex::ALL[0] };
        let pairs = [(led, &test.component_digest[..]), (common, &theirs[..])];
        for (component, theirs) in pairs {
            if differs(&candidate.component(context.here, component), theirs) {
                let error = RpcError::InconsistentDealer {
                    dealer: format!("owner `{}`", key.model.owner),
                    what: format!("model {}", key.model.model),
                    component: component.number() as u8,
                };
                return Err(key.rejection(error.to_string()));
            }
        }
        Ok(candidate)
    });
    let refusal = candidate.as_ref().err().map(RpcError::to_refusal);
    link.send(leader, Frame::SelfTestReply(SelfTestReply { batch: session, refusal }))?;
    link.flush()?;
    link.steps.enter(Step::Start);
    let start = link.receive(leader, Step::Start, |frame| match frame {
        Frame::SelfTestStart(start) if start.batch == session => Some(start),
        _ => None,
    })?;
    match (candidate, start.refusal) {
        (Ok(candidate), None) => run(link, context, key, &candidate, session, run_id),
        (Err(_), None) => Err(Failure::fault("the leader runs a self-test that was refused here".to_owned())),
        (_, Some(refusal)) => refuse(context, key, &refusal),
    }
}

/// All servers: evaluates, agrees on the verdict, and makes the version ready or rejected.
fn run(
    link: &mut Link<'_>,
    context: &Context,
    key: &TestKey,
    candidate: &Candidate,
    session: u64,
    run_id: &RunId,
) -> Result<(), Failure> {
    let began = Instant::now();
    let Candidate { task, entry } = candidate;
    let tested = match evaluate(link, context, task, entry, session, run_id)? {
        Tested::Passed(traffic) => Ok(SelfTestFigures {
            rows: evaluate::ROWS as u32,
            microseconds: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            rounds: u64::from(traffic.rounds),
            bytes_sent: traffic.bytes_sent,
        }),
        Tested::Failed(problem) => Err(key.rejection(problem)),
        Tested::OutOfStep(problem) => {
            // The others wait for messages that will not come.
            let refusal = key.rejection(problem.clone()).to_refusal();
            refuse(context, key, &refusal)?;
            let reason = format!("the self-test of model {} failed: {problem}", key.model);
            link.send_both(Frame::Abort(v1::Abort { batch: session, reason: reason.clone() }))?;
            link.flush()?;
            return Err(Failure::fault(reason));
        }
    };
    let refusal = tested.as_ref().err().map(RpcError::to_refusal);
    if let Some(refusal) = exchange(link, session, refusal, false)? {
        return refuse(context, key, &refusal);
    }
    let stored = match entry.state {
        ModelState::Ready => Ok(entry.clone()),
        _ => {
            let figures = tested.ok();
            context.models.set_state(&entry.version_key(), ModelState::Ready, "", figures)
        }
    };
    let refusal = stored.as_ref().err().map(RpcError::to_refusal);
    match (exchange(link, session, refusal, true)?, stored) {
        (None, Ok(entry)) => {
            // Ready on all three, durably: whatever happens now, this version can be used.
            settle(context, std::slice::from_ref(&entry));
            let SelfTestFigures { microseconds, rounds, bytes_sent, .. } =
                entry.self_test.unwrap_or_default();
            tracing::info!(
                model = %entry.key, version = entry.version, parameters = entry.parameters, rounds, bytes_sent,
                milliseconds = microseconds / 1000, "a model has passed its self-test and is ready"
            );
            context.self_tests.finish(key, &Ok(()));
            Ok(())
        }
        (refusal, stored) => {
            // Some have it ready. It does not vote, and an older version is kept, until all have.
            let error = stored.err().or_else(|| refusal.as_ref().map(RpcError::from_refusal));
            context.self_tests.finish(key, &error.map_or(Ok(()), Err));
            Ok(())
        }
    }
}

/// Tells both peers this server's verdict and takes theirs: why the version is refused, or nothing.
fn exchange(
    link: &mut Link<'_>,
    session: u64,
    refusal: Option<Refusal>,
    ready: bool,
) -> Result<Option<Refusal>, Failure> {
    link.steps.enter(Step::Verdict);
    let verdict = SelfTestVerdict { batch: session, refusal: refusal.clone(), ready };
    link.send_both(Frame::SelfTestVerdict(verdict))?;
    link.flush()?;
    let mut theirs = |neighbour| {
        link.receive(neighbour, Step::Verdict, |frame| match frame {
            Frame::SelfTestVerdict(verdict) if verdict.batch == session && verdict.ready == ready => {
                Some(verdict.refusal)
            }
            _ => None,
        })
    };
    let verdicts = [refusal, theirs(Neighbour::Next)?, theirs(Neighbour::Previous)?];
    Ok(worst(verdicts.into_iter()))
}

/// Of several refusals one that rejects, or else the first.
fn worst(refusals: impl Iterator<Item = Option<Refusal>>) -> Option<Refusal> {
    let rejects =
        |refusal: &Refusal| matches!(RpcError::from_refusal(refusal), RpcError::ModelRejected { .. });
    let mut refusals: Vec<_> = refusals.flatten().collect();
    refusals.sort_by_key(|refusal| !rejects(refusal));
    refusals.into_iter().next()
}

/// Ends a test that was not passed: rejects the version, if the refusal says so, and tells who waits.
fn refuse(context: &Context, key: &TestKey, refusal: &Refusal) -> Result<(), Failure> {
    let error = RpcError::from_refusal(refusal);
    if let (RpcError::ModelRejected { problem, .. }, Ok(entry)) =
        (&error, context.models.find(&key.model, &key.content_digest))
        && matches!(entry.state, ModelState::Staged | ModelState::Ready)
    {
        let rejected = context.models.set_state(&entry.version_key(), ModelState::Rejected, problem, None);
        rejected.map_err(|error| Failure::fault(error.to_string()))?;
        tracing::warn!(model = %entry.key, version = entry.version, %problem, "a model is rejected");
    }
    let told = match error {
        rejected @ RpcError::ModelRejected { .. } => rejected,
        other => RpcError::PeerUnavailable {
            peer: "another server".to_owned(),
            step: format!("it cannot test the model: {other}"),
        },
    };
    context.self_tests.finish(key, &Err(told));
    Ok(())
}

/// Erases what these versions have replaced: all three servers have them ready.
pub(crate) fn settle(context: &Context, ready: &[Entry]) {
    if let Err(error) = context.models.settle(ready) {
        tracing::warn!(%error, "the predecessor of a model could not be erased; it is tried after the next batch");
    }
}
