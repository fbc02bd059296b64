//! Whether the budget pays for a charge. Everything here depends on public numbers only.

use super::{
    Charge, LedgerError, hold::HoldView, rows::pace_key, store::Order, store::StoreView, store::Table,
};
use crate::{
    parameter::NanoRho,
    policy::{Cap, Refusal, SpendingWindow},
};

/// What is committed where a charge counts.
pub(super) struct Spent {
    /// On the task epoch.
    pub(super) epoch: NanoRho,
    /// By the client, on the task epoch.
    pub(super) client: NanoRho,
    /// By the client, on everything.
    pub(super) all_tasks: NanoRho,
    /// On the task epoch before its spending window.
    pub(super) before_window: NanoRho,
    /// On the owners that have caps, in their order.
    pub(super) owners: Vec<NanoRho>,
}

/// A refusal, and what the window of the task epoch holds if it is the window that refuses.
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    pub(super) in_window: u128,
}

/// Refuses `charge` if it does not fit under every cap, and names the cap that leaves the least. The
/// spending window is named only if no other cap refuses: it alone gives way when time passes, and a
/// client that waits for it must not wait in vain.
pub(super) fn check(charge: &Charge, spent: &Spent, held: &HoldView<'_>) -> Result<(), Box<Refused>> {
    let (key, policy) = (charge.key(), charge.policy());
    let left = |cap: NanoRho, spent: NanoRho, held: u128| {
        let used = u128::from(spent.units()) + held;
        u64::try_from(used).map_or(NanoRho::ZERO, |used| cap.saturating_sub(NanoRho::new(used)))
    };
    let mut refusing: Option<(Cap, NanoRho)> = None;
    let mut ask = |cap: &dyn Fn() -> Cap, left: NanoRho| {
        if charge.cost() > left && refusing.as_ref().is_none_or(|(_, least)| left < *least) {
            refusing = Some((cap(), left));
        }
    };
    ask(&|| Cap::TaskEpoch, left(policy.cap_total, spent.epoch, held.of_epoch(&key.task, key.epoch)));
    if let Some(cap) = policy.cap_per_client {
        ask(&|| Cap::Client, left(cap, spent.client, held.of_client(key)));
    }
    if let Some(cap) = policy.cap_per_client_all_tasks {
        ask(&|| Cap::ClientAllTasks, left(cap, spent.all_tasks, held.of_client_in_all_tasks(&key.client)));
    }
    let capped = charge.participants().iter().filter_map(|participant| Some((participant, participant.cap?)));
    for ((participant, cap), spent) in capped.zip(&spent.owners) {
        let owner = &participant.owner;
        ask(&|| Cap::Owner { owner: owner.clone() }, left(cap, *spent, held.of_owner(key, owner)));
    }
    let mut in_window = 0;
    if let (None, Some(window)) = (&refusing, policy.window) {
        let spent = spent.epoch.saturating_sub(spent.before_window);
        in_window = u128::from(spent.units()) + held.of_epoch(&key.task, key.epoch);
        let left = left(window.rho, spent, held.of_epoch(&key.task, key.epoch));
        if charge.cost() > left {
            refusing = Some((Cap::Window, left));
        }
    }
    let Some((cap, left)) = refusing else { return Ok(()) };
    let refusal = Refusal {
        cap,
        task: key.task.clone(),
        epoch: key.epoch,
        client: key.client.clone(),
        needed: charge.cost(),
        left,
        retry_at_ms: None,
    };
    Err(Box::new(Refused { refusal, in_window }))
}

/// What a task epoch had spent at `time_ms`.
pub(super) fn spent_at(
    view: &impl StoreView,
    task: &str,
    epoch: u64,
    time_ms: u64,
) -> Result<NanoRho, LedgerError> {
    Ok(latest_at(view, task, epoch, time_ms)?.map_or(NanoRho::ZERO, |(_, spent)| spent))
}

/// Time of the last charge of a task epoch until `time_ms`, and what was spent then.
fn latest_at(
    view: &impl StoreView,
    task: &str,
    epoch: u64,
    time_ms: u64,
) -> Result<Option<(u64, NanoRho)>, LedgerError> {
    let (from, until) = (pace_key(task, epoch, 0), pace_key(task, epoch, time_ms.saturating_add(1)));
    let row = view.scan(Table::Pace, &from, Some(&until), Order::Descending, 1)?.pop();
    Ok(row.and_then(|(key, value)| {
        let time = u64::from_be_bytes(*key.last_chunk()?);
        Some((time, NanoRho::new(u64::from_be_bytes(value.try_into().ok()?))))
    }))
}

/// A charge that does not fit into the window of its task.
#[derive(Clone, Copy)]
pub(super) struct Waiting<'a> {
    pub(super) task: &'a str,
    pub(super) epoch: u64,
    pub(super) needed: NanoRho,
    /// What the window holds, with running requests.
    pub(super) in_window: u128,
}

impl<'a> From<&'a Refused> for Waiting<'a> {
    fn from(Refused { refusal, in_window }: &'a Refused) -> Self {
        let Refusal { task, epoch, needed, .. } = refusal;
        Waiting { task, epoch: *epoch, needed: *needed, in_window: *in_window }
    }
}

/// When a charge that the window of its task refuses fits at the earliest, if nothing else is charged
/// meanwhile: when enough has moved out at the window's begin. `None` if it is greater than the window.
///
/// The log has a point for every millisecond in which something was charged, so this is exact.
pub(super) fn earliest(
    view: &impl StoreView,
    Waiting { task, epoch, needed, in_window }: Waiting<'_>,
    window: SpendingWindow,
    now_ms: u64,
) -> Result<Option<u64>, LedgerError> {
    if needed > window.rho {
        return Ok(None);
    }
    let length = window.seconds.saturating_mul(1000);
    let mut out_at = now_ms.saturating_sub(length);
    let spent_before = spent_at(view, task, epoch, out_at)?;
    let (mut in_at, spent) = latest_at(view, task, epoch, now_ms)?.unwrap_or((now_ms, NanoRho::ZERO));
    let missing = in_window + u128::from(needed.units()) - u128::from(window.rho.units());
    let wanted = u128::from(spent_before.units()) + missing;
    if u128::from(spent.units()) < wanted {
        // Running requests fill the window: they leave it as late as if they were charged now.
        return Ok(Some(now_ms.saturating_add(length)));
    }
    // What was spent by `out_at` does not suffice, and what was spent by `in_at` does.
    while in_at - out_at > 1 {
        let middle = out_at + (in_at - out_at) / 2;
        match latest_at(view, task, epoch, middle)? {
            Some((time, spent)) if u128::from(spent.units()) >= wanted => in_at = time,
            _ => out_at = middle,
        }
    }
    Ok(Some(in_at.saturating_add(length)))
}
