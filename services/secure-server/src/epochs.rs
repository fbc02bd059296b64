//! How epochs begin, and which epochs' models vote in each task.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use concilium_privacy::{Attestation, Basis, EpochError, EpochRecord, Ledger, beginning};

use crate::config::{ConfigError, Origin, Problem};
use crate::task::Tasks;

/// Compares the tasks' epochs with the ledger, notes there on whose word new ones begin, and gives the
/// epochs whose models vote. Nothing is noted if one of them may not begin.
///
/// # Errors
/// [`ConfigError`] with each task whose epoch may not be served like this, or what fails in the ledger.
pub(crate) fn begin(ledger: &dyn Ledger, tasks: &Tasks, file: &Path) -> anyhow::Result<Epochs> {
    let (mut problems, mut noted) = (Vec::new(), Vec::new());
    for task in tasks.all() {
        match beginning(&task.policy, &ledger.epochs(task.name())?) {
            Ok(attestation) => noted.extend(attestation),
            Err(error) => problems.push(problem(task.name(), &error, file)),
        }
    }
    ConfigError::refuse(problems)?;
    for attestation in noted {
        let Attestation { task, epoch, basis, attested_by } = attestation.clone();
        ledger.attest(attestation)?;
        let spent = ledger.total(&task, epoch)?.rho;
        let basis = match basis {
            Basis::Retrained => "its models are trained anew on new data".to_owned(),
            Basis::CarriedOver { from_epoch } => format!("spending is carried over from epoch {from_epoch}"),
        };
        tracing::info!(task, epoch, basis, attested_by, %spent, "an epoch begins");
    }
    let mut epochs = Epochs::default();
    for task in tasks.all() {
        let carried_over = carried_over(task.policy.epoch, &ledger.epochs(task.name())?);
        epochs.add(task.name(), task.policy.epoch, carried_over);
    }
    Ok(epochs)
}

fn problem(task: &str, error: &EpochError, file: &Path) -> Problem {
    let (problem, remedy) = in_two(error);
    let whole = Problem::of_file(file.to_owned(), Origin::Default, problem, &remedy);
    Problem { key: format!("tasks.{task}.{}", error.key()), ..whole }
}

/// What is wrong, and what to do.
pub(crate) fn in_two(error: &EpochError) -> (String, String) {
    let text = error.to_string();
    let (problem, remedy) = text.split_once("; ").unwrap_or((&text, "correct the task"));
    (problem.to_owned(), remedy.to_owned())
}

/// The epochs with which `epoch` goes on.
fn carried_over(epoch: u64, records: &BTreeMap<u64, EpochRecord>) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut at = epoch;
    // Each is older than the one before.
    while let Some(Attestation { basis: Basis::CarriedOver { from_epoch }, .. }) =
        records.get(&at).and_then(|record| record.attestation.as_ref())
    {
        at = *from_epoch;
        found.insert(at);
    }
    found
}

/// For each task the present epoch and the earlier ones that it carries on.
#[derive(Clone, Debug, Default)]
pub struct Epochs {
    tasks: BTreeMap<String, TaskEpochs>,
}

#[derive(Clone, Debug)]
struct TaskEpochs {
    present: u64,
    carried_over: BTreeSet<u64>,
}

impl Epochs {
    /// Adds a task that is in the epoch `present` and goes on with the models, and the spending, of the
    /// epochs `carried_over`.
    pub fn add(&mut self, task: &str, present: u64, carried_over: BTreeSet<u64>) {
        self.tasks.insert(task.to_owned(), TaskEpochs { present, carried_over });
    }

    /// Why a model that was shared for `epoch` of `task` does not vote; `None` if it may. Models of tasks
    /// that this server does not serve are left as they are.
    pub fn retirement(&self, task: &str, epoch: u64) -> Option<String> {
        let TaskEpochs { present, carried_over } = self.tasks.get(task)?;
        if epoch == *present || carried_over.contains(&epoch) {
            return None;
        }
        Some(format!(
            "it was shared for epoch {epoch}, and the task is in epoch {present}: share a model that was trained \
             for this epoch"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_vote_in_their_own_epoch_and_in_those_that_carry_it_on() {
        let mut epochs = Epochs::default();
        epochs.add("digits", 7, BTreeSet::from([5]));
        for (epoch, votes) in [(7, true), (5, true), (6, false), (4, false), (8, false)] {
            assert_eq!(epochs.retirement("digits", epoch).is_none(), votes, "epoch {epoch}");
        }
        let reason = epochs.retirement("digits", 4).expect("it is retired");
        assert!(reason.contains("epoch 4") && reason.contains("epoch 7"), "{reason}");
        assert_eq!(epochs.retirement("another", 1), None);
    }

    #[test]
    fn an_epoch_goes_on_with_all_that_were_carried_into_each_other() {
        let attested = |epoch, basis| {
            let (task, attested_by) = ("digits".to_owned(), "Ann".to_owned());
            let attestation = Some(Attestation { task, epoch, basis, attested_by });
            (epoch, EpochRecord { attestation, ..EpochRecord::default() })
        };
        let records = BTreeMap::from([
            (1, EpochRecord::default()),
            attested(2, Basis::Retrained),
            attested(4, Basis::CarriedOver { from_epoch: 2 }),
            attested(5, Basis::CarriedOver { from_epoch: 4 }),
        ]);
        for (epoch, expected) in [(5, &[2, 4][..]), (4, &[2]), (2, &[]), (1, &[]), (9, &[])] {
            assert_eq!(carried_over(epoch, &records), expected.iter().copied().collect(), "epoch {epoch}");
        }
    }
}
