//! The barrier before an opening: this server has charged durably, and says so to the others.

use std::time::Instant;

use concilium_mpc::Neighbour;
use concilium_privacy::{Ledger, LedgerError, LedgerHead, NanoRho, PeerHead, Spending, Total};
use concilium_rpc::v1::Barrier;
use concilium_rpc::v1::lane_frame::Frame;

use crate::answer::RunId;
use crate::context::Context;
use crate::link::{Failure, Link};
use crate::metrics;
use crate::models::{Entry, digest_of};
use crate::progress::{LaneProgress, Step};
use crate::task::Task;
use crate::waiting::Waiting;

/// What a server believes was run: equal on all three.
pub(crate) struct Transcript(blake3::Hasher);

impl Transcript {
    /// Of a batch before the opening of `what`.
    pub(crate) fn new<'a>(
        what: &str,
        task: &Task,
        session: u64,
        run_id: &RunId,
        models: &[Entry],
        waiting: impl Iterator<Item = &'a Waiting>,
    ) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("concilium v2 batch transcript");
        hasher.update(&(what.len() as u64).to_le_bytes()).update(what.as_bytes());
        hasher.update(&task.digest).update(&session.to_le_bytes()).update(run_id).update(&digest_of(models));
        for waiting in waiting {
            hasher.update(&waiting.public).update(&waiting.rows.to_le_bytes());
        }
        Transcript(hasher)
    }

    /// Adds what the servers opened among themselves.
    pub(crate) fn note(&mut self, opened: &[bool]) {
        opened.iter().for_each(|&bit| {
            self.0.update(&[u8::from(bit)]);
        });
    }

    /// The digest of it all.
    pub(crate) fn digest(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// What the servers compare before an opening.
pub(crate) struct Meeting {
    /// The batch.
    pub(crate) session: u64,
    /// See [`Transcript`].
    pub(crate) transcript: [u8; 32],
    /// Digests of the components of what is opened that the previous and the next server hold too.
    pub(crate) components: [[u8; 32]; 2],
}

/// What this server's ledger says after its charge.
pub(crate) struct Charged {
    /// End of the log.
    head: LedgerHead,
    /// Spent by the task's epoch.
    spent: Total,
}

/// Lets the ledger charge, and reads what it says then.
pub(crate) fn charge(
    link: &mut Link<'_>,
    context: &Context,
    progress: &LaneProgress,
    task: &Task,
    write: impl FnOnce(&dyn Ledger) -> Result<LedgerHead, LedgerError>,
) -> Result<Charged, Failure> {
    link.steps.enter(Step::Commit);
    let _committing = progress.wait(Step::Commit, None, None);
    let began = Instant::now();
    let charged = write(&*context.ledger).and_then(|head| {
        metrics::record_ledger_commit(began.elapsed());
        let spent = context.ledger.total(task.name(), task.policy.epoch)?;
        Ok(Charged { head, spent })
    });
    charged.map_err(|error| {
        let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        tracing::error!(server = %context.here, %error, reason, "the ledger did not take a charge");
        Failure::fault(format!("the ledger did not take the charge: {error}"))
    })
}

impl Meeting {
    /// Tells both peers that this server has charged.
    pub(crate) fn announce(&self, link: &mut Link<'_>, charged: &Charged) -> Result<(), Failure> {
        let barrier = |component: &[u8; 32]| {
            Frame::Barrier(Barrier {
                batch: self.session,
                transcript_digest: self.transcript.to_vec().into(),
                component_digest: component.to_vec().into(),
                ledger_head_sequence: charged.head.entries,
                ledger_head_hash: charged.head.hash.to_vec().into(),
                spent_total_nano_rho: charged.spent.rho.units(),
            })
        };
        link.send(Neighbour::Next, barrier(&self.components[1]))?;
        link.send(Neighbour::Previous, barrier(&self.components[0]))?;
        link.flush()
    }

    /// Compares this server's batch, copies and ledger with what a peer says of its own. Only when both peers
    /// have charged alike may anything of the batch be opened. Returns the end of the peer's ledger.
    ///
    /// A total that is larger there is taken over, durably, before anything leaves: were it above the cap,
    /// the opening would be one too many.
    ///
    /// # Errors
    /// [`Failure`] if the peer ran something else, if its ledger went back in time, or if the cap is passed;
    /// nothing may be opened then, and the charge stays.
    pub(crate) fn compare(
        &self,
        context: &Context,
        task: &Task,
        charged: &Charged,
        (neighbour, peer): (Neighbour, u8),
        theirs: &Barrier,
    ) -> Result<PeerHead, Failure> {
        let component = &self.components[usize::from(neighbour == Neighbour::Next)];
        compare(peer, &self.transcript, component, theirs)?;
        note(context, peer, task, charged, theirs)
    }
}

/// Refuses another batch, or another copy of what is opened.
fn compare(peer: u8, transcript: &[u8; 32], component: &[u8; 32], theirs: &Barrier) -> Result<(), Failure> {
    if theirs.transcript_digest[..] != transcript[..] {
        return Err(Failure::fault(format!("server {peer} ran another batch; nothing was released")));
    }
    if theirs.component_digest[..] != component[..] {
        return Err(Failure::fault(format!(
            "server {peer} holds another copy of the result's common component; nothing was released"
        )));
    }
    Ok(())
}

/// Notes the end of a peer's ledger, and takes its total over if that is larger.
fn note(
    context: &Context,
    peer: u8,
    task: &Task,
    charged: &Charged,
    theirs: &Barrier,
) -> Result<PeerHead, Failure> {
    let hash = <[u8; 32]>::try_from(&theirs.ledger_head_hash[..])
        .map_err(|_| Failure::fault(format!("server {peer} shows no end of its ledger")))?;
    let head = LedgerHead { entries: theirs.ledger_head_sequence, hash };
    if context.watch.head_of(peer).is_some_and(|seen| head.entries < seen.entries) {
        // The comparison on the next connection says more, and stops the tasks.
        return Err(Failure::fault(format!(
            "the ledger of server {peer} has become shorter; nothing was released"
        )));
    }
    context.watch.note_head(peer, head);
    let (here, there) = (charged.spent.rho.units(), theirs.spent_total_nano_rho);
    if there > here {
        raise(context, peer, task, charged, there)?;
        if there > task.policy.cap_total.units() {
            return Err(Failure::fault(format!(
                "server {peer} has charged {there} nano-rho to epoch {} of task {}, above the cap of {}; nothing was \
                 released",
                task.policy.epoch,
                task.name(),
                task.policy.cap_total.units()
            )));
        }
    }
    Ok(PeerHead { peer, head })
}

/// Takes a larger total of another server over.
fn raise(context: &Context, peer: u8, task: &Task, charged: &Charged, there: u64) -> Result<(), Failure> {
    let total = Total { rho: NanoRho::new(there), ..charged.spent };
    let theirs = Spending { total, ..Spending::default() };
    let raised = context.ledger.raise(task.name(), task.policy.epoch, &theirs, peer);
    raised.map_err(|error| Failure::fault(format!("the ledger cannot be written: {error}")))?;
    metrics::count_ledger_raise(task.name());
    tracing::warn!(
        server = %context.here, peer, task = task.name(), here = charged.spent.rho.units(), there,
        "another server has charged more, and the total here was raised to its"
    );
    Ok(())
}
