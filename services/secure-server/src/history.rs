//! What each task was asked lately, minute by minute, for the operator's page.
//!
//! Kept in memory only: the ledger has what must not be lost. A task takes at most
//! [`MINUTES_KEPT`] times 400 bytes, 144 kB, and only minutes with requests take any.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Minutes with requests that are kept of each task.
pub const MINUTES_KEPT: usize = 360;

const MINUTE_MS: u64 = 60_000;
/// Classes of latency for each doubling: a quantile is off by less than a tenth.
const CLASSES_PER_DOUBLING: f64 = 4.0;
/// Upper end of the first class.
const FIRST_CLASS_MICROSECONDS: f64 = 100.0;
/// From 0.1 ms to 105 s; the last takes whatever is longer.
const LATENCY_CLASSES: usize = 81;

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// It was answered.
    Answered {
        /// Rows of the answer.
        rows: u32,
        /// From its header to its answer.
        latency: Duration,
    },
    /// It was refused, for this reason.
    Refused {
        /// The reason as clients are told it.
        reason: &'a str,
    },
}

/// Requests of all tasks, by minute.
pub struct History {
    since_ms: u64,
    tasks: HashMap<String, Mutex<Recent>>,
}

#[derive(Default)]
struct Recent {
    minutes: VecDeque<Minute>,
    /// Refusals since the start, by reason; reasons are a fixed list.
    refusals: BTreeMap<String, u64>,
}

struct Minute {
    /// Minutes since 1970.
    number: u64,
    answered: u32,
    rows: u64,
    refused: u32,
    latencies: Latencies,
}

/// What happened in one minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MinuteSummary {
    /// Begin of the minute, in milliseconds since 1970-01-01 UTC.
    pub start_ms: u64,
    /// Requests that were answered.
    pub answered: u32,
    /// Rows of their answers.
    pub rows: u64,
    /// Requests that were refused.
    pub refused: u32,
    /// Half of the answers took less; `None` without an answer.
    pub latency_p50: Option<Duration>,
    /// 95 of 100 answers took less.
    pub latency_p95: Option<Duration>,
}

impl History {
    /// A history of these tasks that begins at `now_ms`.
    pub fn new<'a>(tasks: impl Iterator<Item = &'a str>, now_ms: u64) -> Self {
        History { since_ms: now_ms, tasks: tasks.map(|task| (task.to_owned(), Mutex::default())).collect() }
    }

    /// When the history begins, in milliseconds since 1970-01-01 UTC.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Notes the end of a request. Requests for unknown tasks are passed over.
    pub fn note(&self, task: &str, now_ms: u64, outcome: Outcome<'_>) {
        let Some(mut recent) = self.task(task) else { return };
        let minute = recent.minute(now_ms / MINUTE_MS);
        match outcome {
            Outcome::Answered { rows, latency } => {
                minute.answered = minute.answered.saturating_add(1);
                minute.rows = minute.rows.saturating_add(u64::from(rows));
                minute.latencies.note(latency);
            }
            Outcome::Refused { reason } => {
                minute.refused = minute.refused.saturating_add(1);
                *recent.refusals.entry(reason.to_owned()).or_default() += 1;
            }
        }
    }

    /// The latest `minutes` minutes of a task, oldest first, without those that had no request.
    pub fn minutes(&self, task: &str, now_ms: u64, minutes: u64) -> Vec<MinuteSummary> {
        let first = (now_ms / MINUTE_MS).saturating_sub(minutes.saturating_sub(1));
        self.task(task).map_or_else(Vec::new, |recent| {
            recent.minutes.iter().filter(|minute| minute.number >= first).map(Minute::summary).collect()
        })
    }

    /// The latest `minutes` minutes of a task as one.
    pub fn together(&self, task: &str, now_ms: u64, minutes: u64) -> MinuteSummary {
        let first = (now_ms / MINUTE_MS).saturating_sub(minutes.saturating_sub(1));
        let mut sum = Minute::new(first);
        if let Some(recent) = self.task(task) {
            for minute in recent.minutes.iter().filter(|minute| minute.number >= first) {
                sum.answered = sum.answered.saturating_add(minute.answered);
                sum.rows = sum.rows.saturating_add(minute.rows);
                sum.refused = sum.refused.saturating_add(minute.refused);
                sum.latencies.add(&minute.latencies);
            }
        }
        sum.summary()
    }

    /// Refusals of a task since the start, by reason.
    pub fn refusals(&self, task: &str) -> BTreeMap<String, u64> {
        self.task(task).map(|recent| recent.refusals.clone()).unwrap_or_default()
    }

    fn task(&self, task: &str) -> Option<MutexGuard<'_, Recent>> {
        Some(self.tasks.get(task)?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Recent {
    /// The minute of this number. After the clock was set back, the last one that there is.
    fn minute(&mut self, number: u64) -> &mut Minute {
        if self.minutes.back().is_none_or(|last| last.number < number) {
            if self.minutes.len() == MINUTES_KEPT {
                self.minutes.pop_front();
            }
            self.minutes.push_back(Minute::new(number));
        }
        let last = self.minutes.len() - 1;
        &mut self.minutes[last]
    }
}

impl Minute {
    fn new(number: u64) -> Self {
        Minute { number, answered: 0, rows: 0, refused: 0, latencies: Latencies([0; LATENCY_CLASSES]) }
    }

    fn summary(&self) -> MinuteSummary {
        MinuteSummary {
            start_ms: self.number.saturating_mul(MINUTE_MS),
            answered: self.answered,
            rows: self.rows,
            refused: self.refused,
            latency_p50: self.latencies.quantile(0.5),
            latency_p95: self.latencies.quantile(0.95),
        }
    }
}

/// Counts of latencies in classes of which each is `2^(1/4)` times as wide as the one before.
struct Latencies([u32; LATENCY_CLASSES]);

impl Latencies {
    fn note(&mut self, latency: Duration) {
        let ratio = latency.as_secs_f64() * 1e6 / FIRST_CLASS_MICROSECONDS;
        // Saturates: below the first class to it, and above the last to that.
        let class = (ratio.log2() * CLASSES_PER_DOUBLING).ceil().max(0.0) as usize;
        let count = &mut self.0[class.min(LATENCY_CLASSES - 1)];
        *count = count.saturating_add(1);
    }

    fn add(&mut self, other: &Latencies) {
        for (count, other) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(other);
        }
    }

    /// The middle, on the logarithmic scale, of the class in which the quantile lies: half a class,
    /// nine hundredths, off at most.
    fn quantile(&self, quantile: f64) -> Option<Duration> {
        let total: u64 = self.0.iter().map(|&count| u64::from(count)).sum();
        if total == 0 {
            return None;
        }
        let wanted = ((total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let class = self.0.iter().position(|&count| {
            seen += u64::from(count);
            seen >= wanted
        })?;
        let middle = (class as f64 - 0.5) / CLASSES_PER_DOUBLING;
        Some(Duration::from_secs_f64(FIRST_CLASS_MICROSECONDS * middle.exp2() / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_790_000_000_000;

    fn answered(rows: u32, ms: u64) -> Outcome<'static> {
        Outcome::Answered { rows, latency: Duration::from_millis(ms) }
    }

    #[test]
    fn minutes_add_up() {
        let history = History::new(["digits"].into_iter(), NOW);
        history.note("digits", NOW, answered(2, 5));
        history.note("digits", NOW + 1, answered(3, 5));
        history.note("digits", NOW + 2 * MINUTE_MS, Outcome::Refused { reason: "NO_MODELS" });
        history.note("poems", NOW, answered(1, 1));
        let minutes = history.minutes("digits", NOW + 2 * MINUTE_MS, 60);
        assert_eq!(minutes.len(), 2, "the minute in between had no request");
        assert_eq!((minutes[0].answered, minutes[0].rows, minutes[0].refused), (2, 5, 0));
        assert_eq!((minutes[1].answered, minutes[1].refused, minutes[1].latency_p50), (0, 1, None));
        assert_eq!(minutes[0].start_ms, NOW / MINUTE_MS * MINUTE_MS);
        let hour = history.together("digits", NOW + 2 * MINUTE_MS, 60);
        assert_eq!((hour.answered, hour.rows, hour.refused), (2, 5, 1));
        // The first minute lies outside of the last two.
        assert_eq!(history.together("digits", NOW + 2 * MINUTE_MS, 2).answered, 0);
        assert_eq!(history.refusals("digits"), BTreeMap::from([("NO_MODELS".to_owned(), 1)]));
        assert!(history.minutes("poems", NOW, 60).is_empty());
    }

    #[test]
    fn quantiles_are_within_a_tenth() {
        for scale in [1, 10, 100, 1000] {
            let history = History::new(["digits"].into_iter(), NOW);
            (1..=100).for_each(|step| history.note("digits", NOW, answered(1, step * scale)));
            let minute = history.together("digits", NOW, 1);
            for (quantile, expected) in [(minute.latency_p50, 50 * scale), (minute.latency_p95, 95 * scale)] {
                let found = quantile.expect("there are answers").as_secs_f64() * 1e3;
                let ratio = found / expected as f64;
                assert!((0.9..1.1).contains(&ratio), "{found} ms for {expected} ms");
            }
        }
        let history = History::new(["digits"].into_iter(), NOW);
        for latency in [Duration::ZERO, Duration::MAX] {
            history.note("digits", NOW, Outcome::Answered { rows: 1, latency });
        }
        let minute = history.together("digits", NOW, 1);
        assert!(minute.latency_p50.expect("an answer") < Duration::from_millis(1));
        assert!(minute.latency_p95.expect("an answer") > Duration::from_secs(60));
    }

    #[test]
    fn memory_is_bounded_and_the_clock_may_go_back() {
        assert!(size_of::<Minute>() <= 400, "{} bytes", size_of::<Minute>());
        let history = History::new(["digits"].into_iter(), NOW);
        for minute in 0..2 * MINUTES_KEPT as u64 {
            history.note("digits", NOW + minute * MINUTE_MS, answered(1, 1));
        }
        let now = NOW + 2 * MINUTES_KEPT as u64 * MINUTE_MS;
        assert_eq!(history.minutes("digits", now, u64::MAX).len(), MINUTES_KEPT);
        history.note("digits", 0, answered(7, 1));
        assert_eq!(history.minutes("digits", now, u64::MAX).last().expect("minutes").rows, 8);
    }
}
