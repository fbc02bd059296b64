//! Spending over time, read from the ledger's log, and when the budget will be gone at this rate.
//!
//! For people to look at: nothing here decides whether a request is answered. Memory is bounded
//! whatever the log's length: a task's curve has at most [`MOST_STEPS`] steps, which get wider as
//! time goes on, and one sum for each of the last [`HOURS_KEPT`] hours in which something was spent.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::{
    ledger::{Ledger, LedgerEntry, LedgerError},
    parameter::NanoRho,
};

/// Most steps of one task's curve.
pub const MOST_STEPS: usize = 480;
/// Hours with spending that are remembered for forecasts: seven days.
pub const HOURS_KEPT: usize = 7 * 24;
/// Fewest charges from which a rate is taken.
pub const FEWEST_CHARGES: u64 = 5;

/// Width of a new curve's steps.
const FIRST_WIDTH_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;
/// Entries that are read from the ledger at a time.
const PAGE: usize = 1024;

/// When a budget will be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forecast {
    /// Nothing is left.
    Exhausted,
    /// Nothing was spent yet.
    NothingSpent,
    /// The first charge is less than an hour old, or there were fewer than [`FEWEST_CHARGES`] in the
    /// last seven days: a rate would say nothing.
    TooLittleData {
        /// Charges in the last seven days.
        charges: u64,
        /// How long ago the first charge was.
        age: Duration,
    },
    /// Nothing was spent in the last seven days.
    Idle,
    /// At the rate of the latest time.
    At {
        /// When nothing is left, in milliseconds since 1970-01-01 UTC.
        time_ms: u64,
        /// The time up to now over which the rate was taken.
        basis: Duration,
        /// What was spent in that time.
        spent: NanoRho,
    },
}

/// What was spent on one task epoch, over time.
#[derive(Debug, Clone)]
pub struct SpendingCurve {
    first_ms: u64,
    width_ms: u64,
    /// Sums of steps of `width_ms` from `first_ms` on.
    steps: Vec<NanoRho>,
    /// Sum and number of charges by hour since 1970.
    hours: BTreeMap<u64, (NanoRho, u64)>,
}

impl SpendingCurve {
    fn new(first_ms: u64) -> Self {
        Self { first_ms, width_ms: FIRST_WIDTH_MS, steps: Vec::new(), hours: BTreeMap::new() }
    }

    fn add(&mut self, time_ms: u64, rho: NanoRho) {
        // A clock that was set back counts with the first step.
        let since = time_ms.saturating_sub(self.first_ms);
        while since / self.width_ms >= MOST_STEPS as u64 {
            self.widen();
        }
        let step = (since / self.width_ms) as usize;
        if self.steps.len() <= step {
            self.steps.resize(step + 1, NanoRho::ZERO);
        }
        self.steps[step] = saturating_add(self.steps[step], rho);
        let (sum, charges) = self.hours.entry(time_ms / HOUR_MS).or_default();
        *sum = saturating_add(*sum, rho);
        *charges += 1;
        if self.hours.len() > HOURS_KEPT {
            self.hours.pop_first();
        }
    }

    /// Doubles the width of the steps.
    fn widen(&mut self) {
        self.steps = self
            .steps
            .chunks(2)
            .map(|pair| pair.iter().copied().fold(NanoRho::ZERO, saturating_add))
            .collect();
        self.width_ms *= 2;
    }

    /// Time of the first charge, in milliseconds since 1970-01-01 UTC.
    pub fn first_ms(&self) -> u64 {
        self.first_ms
    }

    /// Time and what was spent until then, from the first charge to the end of the last step.
    pub fn points(&self) -> Vec<(u64, NanoRho)> {
        let mut points = vec![(self.first_ms, NanoRho::ZERO)];
        let mut spent = NanoRho::ZERO;
        let mut time_ms = self.first_ms;
        for &step in &self.steps {
            time_ms = time_ms.saturating_add(self.width_ms);
            spent = saturating_add(spent, step);
            points.push((time_ms, spent));
        }
        points
    }

    /// What was spent, and in how many charges, in the last `hours` hours, of which the present one
    /// has only begun; and how long ago that time began, at most as long ago as the first charge.
    fn latest(&self, now_ms: u64, hours: u64) -> (NanoRho, u64, Duration) {
        let first_hour = (now_ms / HOUR_MS).saturating_sub(hours - 1);
        let (spent, charges) = self.hours.range(first_hour..).fold(
            (NanoRho::ZERO, 0),
            |(spent, charges), (_, &(hour_spent, hour_charges))| {
                (saturating_add(spent, hour_spent), charges + hour_charges)
            },
        );
        let begin_ms = self.first_ms.max(first_hour * HOUR_MS);
        (spent, charges, Duration::from_millis(now_ms.saturating_sub(begin_ms)))
    }

    /// When `left` is gone: at the rate of the last 24 hours, or of the last seven days if there was
    /// too little in them.
    pub fn forecast(&self, left: NanoRho, now_ms: u64) -> Forecast {
        if left == NanoRho::ZERO {
            return Forecast::Exhausted;
        }
        let age = Duration::from_millis(now_ms.saturating_sub(self.first_ms));
        let (_, charges, _) = self.latest(now_ms, HOURS_KEPT as u64);
        if charges == 0 {
            return Forecast::Idle;
        }
        if age < Duration::from_millis(HOUR_MS) {
            return Forecast::TooLittleData { charges, age };
        }
        for hours in [24, HOURS_KEPT as u64] {
            let (spent, charges, basis) = self.latest(now_ms, hours);
            if charges >= FEWEST_CHARGES && spent > NanoRho::ZERO {
                let ms = u128::from(left.units()) * basis.as_millis() / u128::from(spent.units());
                let time_ms = now_ms.saturating_add(u64::try_from(ms).unwrap_or(u64::MAX));
                return Forecast::At { time_ms, basis, spent };
            }
        }
        Forecast::TooLittleData { charges, age }
    }
}

fn saturating_add(a: NanoRho, b: NanoRho) -> NanoRho {
    a.checked_add(b).unwrap_or(NanoRho::new(u64::MAX))
}

/// Follows the ledger's log and keeps a curve of each task epoch that it was told to.
#[derive(Debug, Default)]
pub struct BurnDown {
    /// Number of the first entry that was not read.
    next: u64,
    curves: HashMap<(String, u64), Option<SpendingCurve>>,
}

impl BurnDown {
    /// Follows these tasks and epochs; entries of others are passed over.
    pub fn new(epochs: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self { next: 0, curves: epochs.into_iter().map(|epoch| (epoch, None)).collect() }
    }

    /// Reads what is new in the log, but not much more than `at_most` entries. Returns whether that
    /// was all.
    ///
    /// # Errors
    /// As [`Ledger::entries`].
    pub fn read(&mut self, ledger: &dyn Ledger, at_most: usize) -> Result<bool, LedgerError> {
        let mut read = 0;
        while read < at_most {
            let page = ledger.entries(self.next, PAGE)?;
            read += page.len();
            page.iter().for_each(|entry| self.note(entry));
            if page.len() < PAGE {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn note(&mut self, entry: &LedgerEntry) {
        self.next = entry.number + 1;
        let Some((task, epoch, charged)) = entry.charged() else { return };
        if let Some(curve) = self.curves.get_mut(&(task.to_owned(), epoch)) {
            let curve = curve.get_or_insert_with(|| SpendingCurve::new(entry.time_ms));
            curve.add(entry.time_ms, charged.rho);
        }
    }

    /// How many entries were read.
    pub fn entries_read(&self) -> u64 {
        self.next
    }

    /// The curve of a task epoch; `None` if nothing was charged or it is not followed.
    pub fn curve(&self, task: &str, epoch: u64) -> Option<&SpendingCurve> {
        self.curves.get(&(task.to_owned(), epoch))?.as_ref()
    }

    /// When `left` of the budget of a task epoch is gone.
    pub fn forecast(&self, task: &str, epoch: u64, left: NanoRho, now_ms: u64) -> Forecast {
        match self.curve(task, epoch) {
            Some(curve) => curve.forecast(left, now_ms),
            None if left == NanoRho::ZERO => Forecast::Exhausted,
            None => Forecast::NothingSpent,
        }
    }
}
