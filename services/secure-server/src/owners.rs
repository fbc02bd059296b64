//! Whose models vote in a batch: owners within the number of models that the task allows them, and within
//! the budgets that they have set themselves.

use std::collections::{BTreeMap, BTreeSet};

use concilium_privacy::{NanoRho, Participant, Spending};
use concilium_rpc::status::RpcError;

use crate::context::Context;
use crate::kept::ledger_error;
use crate::models::Entry;
use crate::task::Task;

/// Reason of a refusal because of owners whose own budgets do not pay on the refusing server.
pub(crate) const OWNERS_SPENT: &str = "OWNERS_SPENT";

/// The owners of `models` with their budgets: the smallest of each owner's models.
pub(crate) fn participants(models: &[Entry]) -> Vec<Participant> {
    let mut owners: BTreeMap<&String, Option<NanoRho>> = BTreeMap::new();
    for entry in models {
        let cap = owners.entry(&entry.key.owner).or_default();
        *cap = (*cap).into_iter().chain(entry.terms.budget).min();
    }
    owners.into_iter().map(|(owner, cap)| Participant { owner: owner.clone(), cap }).collect()
}

/// Leaves the surplus of owners out who have more models than `limit`, the last by name: the guarantee
/// for whole owners counts on it. There is a surplus when the operators have lowered the limit.
pub(crate) fn within_limit(models: Vec<Entry>, limit: u32) -> Vec<Entry> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut within = |entry: &Entry| {
        let count = counts.entry(entry.key.owner.clone()).or_default();
        *count += 1;
        *count <= limit
    };
    models.into_iter().filter(|entry| within(entry)).collect()
}

/// Refuses models of which one owner has more than the task allows.
pub(crate) fn check_limit(task: &Task, models: &[Entry]) -> Result<(), RpcError> {
    let limit = task.policy.models_per_owner;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in models {
        *counts.entry(&entry.key.owner).or_default() += 1;
    }
    match counts.into_iter().find(|(_, count)| *count > u64::from(limit)) {
        None => Ok(()),
        Some((owner, got)) => Err(RpcError::TooLarge {
            what: format!("models of owner {owner} in a batch of task {}", task.name()),
            limit: limit.into(),
            got,
        }),
    }
}

/// Owners whose own budgets do not pay for a batch.
pub(crate) struct Unpaid {
    pub(crate) owners: BTreeSet<String>,
    /// The batch's price.
    needed: NanoRho,
    /// The most that is left to one of them.
    left: NanoRho,
}

impl Unpaid {
    /// What clients are told when nobody else is left.
    pub(crate) fn refusal(&self, task: &Task) -> RpcError {
        RpcError::BudgetExhausted {
            task: task.name().to_owned(),
            epoch: task.policy.epoch,
            scope: "owner".to_owned(),
            cap: "the owners' own budgets, none of which pays for more".to_owned(),
            needed_nano_rho: self.needed.units(),
            left_nano_rho: self.left.units(),
        }
    }
}

/// The owners of `models` whose own budgets do not pay for `rows` more rows, by this server's ledger.
///
/// # Errors
/// [`RpcError::LedgerUnavailable`] when the ledger can't be read.
pub(crate) fn unpaid(
    context: &Context,
    task: &Task,
    models: &[Entry],
    rows: u64,
) -> Result<Unpaid, RpcError> {
    let needed = NanoRho::new(task.row_cost_nano_rho().saturating_mul(rows));
    let mut unpaid = Unpaid { owners: BTreeSet::new(), needed, left: NanoRho::ZERO };
    let participants = participants(models);
    if participants.iter().all(|participant| participant.cap.is_none()) {
        return Ok(unpaid);
    }
    let spending = context.ledger.spent(task.name(), task.policy.epoch).map_err(ledger_error)?;
    for Participant { owner, cap } in participants {
        let Some(cap) = cap else { continue };
        let left = cap.saturating_sub(spent_on(&spending, &owner));
        if left < needed {
            unpaid.left = unpaid.left.max(left);
            unpaid.owners.insert(owner);
        }
    }
    Ok(unpaid)
}

/// What was spent on an owner's models.
pub(crate) fn spent_on(spending: &Spending, owner: &str) -> NanoRho {
    spending.by_owner.get(owner).map_or(NanoRho::ZERO, |total| total.rho)
}

/// Why each owner takes no part any more whose own budget does not pay for one more row of `task`.
pub(crate) fn left(task: &Task, models: &[Entry], spending: &Spending) -> BTreeMap<String, String> {
    let row = NanoRho::new(task.row_cost_nano_rho());
    let reason = |Participant { owner, cap }| {
        let cap = cap?;
        let spent = spent_on(spending, &owner);
        let reason = format!(
            "takes no part any more: of its own budget of rho {cap}, {spent} is spent, and a row costs {row}"
        );
        (cap.saturating_sub(spent) < row).then_some((owner, reason))
    };
    participants(models).into_iter().filter_map(reason).collect()
}
