//! How the epochs of a task follow each other.

use std::collections::BTreeMap;

use thiserror::Error;

use super::{
    Attestation, Basis, LedgerError, Total,
    attestation::Epoch,
    rows::{Reader, after_prefix, decode_total, name_key},
    store::{Order, StoreView, Table},
};
use crate::{
    parameter::NanoRho,
    policy::{EpochBasis, EpochDeclaration, TaskPolicy},
};

/// What a ledger has of one epoch of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpochRecord {
    /// What was committed, with what was carried over into it.
    pub total: Total,
    /// On whose word it began.
    pub attestation: Option<Attestation>,
    /// The epoch in which its spending goes on; nothing more is charged on this one then.
    pub carried_into: Option<u64>,
}

/// A task file that does not go with what the ledger has of the task's epochs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EpochError {
    /// The epoch would forget what an earlier one has spent, and nobody answers for that.
    #[error(
        "is missing: epoch {epoch} would begin with nothing spent, and epoch {earlier} has spent rho {} for {} rows; \
         give epoch_basis = \"retrained\" if all models are trained anew on records that do not count in epoch \
         {earlier}, or \"carried_over\" to go on with its spending, and in epoch_attested_by who answers for that",
        spent.rho, spent.rows
    )]
    Undeclared {
        /// The epoch of the task file.
        epoch: u64,
        /// The latest earlier epoch that has spent something.
        earlier: u64,
        /// What it has spent.
        spent: Total,
    },
    /// The epoch began on another word than the task file says.
    #[error(
        "does not go with the ledger: epoch {epoch} began as {}, on the word of {attested_by}, and a word stays; \
         write both as they were, or begin another epoch",
        basis_of(*basis)
    )]
    Changed {
        /// The epoch of the task file.
        epoch: u64,
        /// What it began with.
        basis: Basis,
        /// Who answers for it.
        attested_by: String,
    },
    /// Too late to carry something over.
    #[error(
        "comes too late: epoch {epoch} has spent rho {spent} already, so what it began with is settled; begin \
         another epoch that carries it over"
    )]
    Charged {
        /// The epoch of the task file.
        epoch: u64,
        /// What it has spent.
        spent: NanoRho,
    },
    /// The spending of an epoch goes on in another one.
    #[error(
        "does not go with the ledger: the spending of epoch {epoch} went on in epoch {into}; use that epoch, or \
         begin one after it"
    )]
    Closed {
        /// The closed epoch.
        epoch: u64,
        /// Where its spending went on.
        into: u64,
    },
}

fn basis_of(basis: Basis) -> EpochBasis {
    match basis {
        Basis::Retrained => EpochBasis::Retrained,
        Basis::CarriedOver { .. } => EpochBasis::CarriedOver,
    }
}

impl EpochError {
    /// The key of the task file that it concerns.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Closed { .. } => "epoch",
            _ => "epoch_basis",
        }
    }
}

/// What a ledger must note before a server serves the epoch of `policy`, given what the ledger has of the
/// task's epochs; `None` if nothing.
///
/// Spending is carried over from the latest earlier epoch that has any, which holds what was carried over
/// into it. An epoch that was charged before anybody had to answer for it may go on without a word.
///
/// # Errors
/// [`EpochError`] when the epoch may not be served like this.
pub fn beginning(
    policy: &TaskPolicy,
    epochs: &BTreeMap<u64, EpochRecord>,
) -> Result<Option<Attestation>, EpochError> {
    let epoch = policy.epoch;
    let nothing = EpochRecord::default();
    let own = epochs.get(&epoch).unwrap_or(&nothing);
    if let Some(into) = own.carried_into {
        return Err(EpochError::Closed { epoch, into });
    }
    let declared = policy.declaration.as_ref();
    if let Some(Attestation { basis, attested_by, .. }) = &own.attestation {
        let same = declared.is_some_and(|declared| {
            declared.basis == basis_of(*basis) && declared.attested_by == *attested_by
        });
        let (basis, attested_by) = (*basis, attested_by.clone());
        return if same { Ok(None) } else { Err(EpochError::Changed { epoch, basis, attested_by }) };
    }
    let charged = own.total != Total::default();
    let earlier = epochs
        .range(..epoch)
        .rev()
        .find(|(_, record)| record.total != Total::default())
        .map(|(at, found)| (*at, found));
    let Some(EpochDeclaration { basis, attested_by }) = declared else {
        return match earlier {
            Some((earlier, record)) if !charged => {
                Err(EpochError::Undeclared { epoch, earlier, spent: record.total })
            }
            _ => Ok(None),
        };
    };
    let basis = match (basis, earlier) {
        (EpochBasis::Retrained, _) => Basis::Retrained,
        (EpochBasis::CarriedOver, _) if charged => {
            return Err(EpochError::Charged { epoch, spent: own.total.rho });
        }
        (EpochBasis::CarriedOver, Some((epoch, EpochRecord { carried_into: Some(into), .. }))) => {
            return Err(EpochError::Closed { epoch, into: *into });
        }
        (EpochBasis::CarriedOver, Some((from_epoch, _))) => Basis::CarriedOver { from_epoch },
        // A ledger that is new knows of no spending; the word is kept all the same.
        (EpochBasis::CarriedOver, None) => Basis::CarriedOver { from_epoch: epoch.saturating_sub(1) },
    };
    Ok(Some(Attestation { task: policy.task.clone(), epoch, basis, attested_by: attested_by.clone() }))
}

/// Reads all that a ledger has of a task's epochs; `place` is where it is.
pub(super) fn read(
    view: &impl StoreView,
    place: &str,
    task: &str,
) -> Result<BTreeMap<u64, EpochRecord>, LedgerError> {
    let prefix = name_key(task);
    let until = after_prefix(&prefix);
    let corrupt = || LedgerError::corrupt(place, format!("an epoch of task {task} cannot be read"));
    let number = |key: &[u8]| {
        let mut reader = Reader(key.get(prefix.len()..)?);
        let epoch = reader.u64()?;
        reader.end(epoch)
    };
    let rows = |table| view.scan(table, &prefix, until.as_deref(), Order::Ascending, usize::MAX);
    let mut epochs: BTreeMap<u64, EpochRecord> = BTreeMap::new();
    for (key, row) in rows(Table::TaskTotals)? {
        let record = epochs.entry(number(&key).ok_or_else(corrupt)?).or_default();
        record.total = decode_total(Some(&row)).ok_or_else(corrupt)?;
    }
    for (key, row) in rows(Table::Epochs)? {
        let epoch = number(&key).ok_or_else(corrupt)?;
        let Epoch { attested, carried_into } = Epoch::decode(Some(&row)).ok_or_else(corrupt)?;
        let record = epochs.entry(epoch).or_default();
        record.carried_into = carried_into;
        record.attestation = attested.map(|(basis, attested_by)| Attestation {
            task: task.to_owned(),
            epoch,
            basis,
            attested_by,
        });
    }
    Ok(epochs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::charge;

    fn record(rho: u64) -> EpochRecord {
        let total = Total { rho: NanoRho::new(rho), requests: rho.min(1), rows: rho.min(1) };
        EpochRecord { total, ..EpochRecord::default() }
    }

    fn policy(epoch: u64, declared: Option<(EpochBasis, &str)>) -> TaskPolicy {
        let declaration = declared.map(|(basis, by)| EpochDeclaration { basis, attested_by: by.to_owned() });
        TaskPolicy { epoch, declaration, ..charge().policy().clone() }
    }

    #[test]
    fn an_epoch_after_one_with_spending_needs_a_word() {
        let ledger = BTreeMap::from([(1, record(5)), (3, record(7)), (4, record(0))]);
        let basis = |epoch, declared| {
            beginning(&policy(epoch, declared), &ledger).map(|noted| noted.map(|noted| noted.basis))
        };
        // First epochs, epochs that were charged before, and epochs before all spending need none.
        for epoch in [0, 1, 3] {
            assert_eq!(basis(epoch, None), Ok(None), "epoch {epoch}");
        }
        for (epoch, before) in [(2, 1), (4, 3), (9, 3)] {
            let error = basis(epoch, None).expect_err("nobody answers for it");
            assert!(matches!(error, EpochError::Undeclared { earlier, .. } if earlier == before), "{error}");
            let carried = basis(epoch, Some((EpochBasis::CarriedOver, "Ann")));
            assert_eq!(carried, Ok(Some(Basis::CarriedOver { from_epoch: before })), "epoch {epoch}");
            assert_eq!(basis(epoch, Some((EpochBasis::Retrained, "Ann"))), Ok(Some(Basis::Retrained)));
        }
        assert_eq!(basis(3, Some((EpochBasis::Retrained, "Ann"))), Ok(Some(Basis::Retrained)));
        let late = basis(3, Some((EpochBasis::CarriedOver, "Ann")));
        assert_eq!(late, Err(EpochError::Charged { epoch: 3, spent: NanoRho::new(7) }));
        // A ledger that knows of nothing keeps the word.
        let noted = beginning(&policy(2, Some((EpochBasis::CarriedOver, "Ann"))), &BTreeMap::new());
        let noted = noted.expect("allowed").expect("a word");
        assert_eq!((noted.basis, noted.attested_by.as_str()), (Basis::CarriedOver { from_epoch: 1 }, "Ann"));
    }

    #[test]
    fn a_word_stays() {
        let word = |epoch, basis| {
            let (task, attested_by) = (charge().key().task.clone(), "Ann".to_owned());
            Some(Attestation { task, epoch, basis, attested_by })
        };
        let old = EpochRecord { carried_into: Some(2), ..record(5) };
        let carried = word(2, Basis::CarriedOver { from_epoch: 1 });
        let ledger = BTreeMap::from([(1, old), (2, EpochRecord { attestation: carried, ..record(5) })]);
        let same = Some((EpochBasis::CarriedOver, "Ann"));
        assert_eq!(beginning(&policy(2, same), &ledger), Ok(None));
        for other in [None, Some((EpochBasis::Retrained, "Ann")), Some((EpochBasis::CarriedOver, "Ben"))] {
            let error = beginning(&policy(2, other), &ledger).expect_err("another word");
            assert!(matches!(error, EpochError::Changed { epoch: 2, .. }), "{error}");
            assert!(error.to_string().contains("carried_over, on the word of Ann"), "{error}");
        }
        let error = beginning(&policy(1, None), &ledger).expect_err("closed");
        assert_eq!((error.clone(), error.key()), (EpochError::Closed { epoch: 1, into: 2 }, "epoch"));
        // An epoch between the two cannot take what went past it.
        let later = BTreeMap::from([(1, EpochRecord { carried_into: Some(3), ..record(5) })]);
        let error = beginning(&policy(2, same), &later).expect_err("closed");
        assert_eq!(error, EpochError::Closed { epoch: 1, into: 3 });
    }
}
