//! The event that tells two ensembles apart: chosen on some samples, counted on others.
//!
//! A sample has two parts. `known` is independent of the votes: the query and the corrupted server's own noise. `seen`
//! is what the release shows. Given any value of what is known, what is seen must be (epsilon,
//! delta)-differentially private, so an event may be tested among the samples alone in which `known` lies
//! in an interval: where the own noise leaves the answer open, most is to be seen.
//!
//! Seen values are put into cells. The event is the cells of the largest likelihood ratio, as many as
//! give the best lower bound (Neyman and Pearson: such events separate best).

use std::ops::RangeInclusive;

/// One sample of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Independent of the votes, and known to the corrupted server.
    pub known: i64,
    /// What the release shows.
    pub seen: i64,
}

/// One of so many samples is taken to choose the event; the others test it.
const CHOOSING: usize = 4;

/// Samples to choose an event with, and samples to test it on.
pub struct Samples {
    /// One in four.
    pub choosing: Vec<Sample>,
    /// The others.
    pub testing: Vec<Sample>,
}

impl Samples {
    /// Splits by position alone.
    pub fn split(samples: &[Sample]) -> Self {
        let part = |chooses: bool| {
            let places = samples.iter().enumerate();
            places
                .filter(|(place, _)| (place % CHOOSING == 0) == chooses)
                .map(|(_, sample)| *sample)
                .collect()
        };
        Self { choosing: part(true), testing: part(false) }
    }
}

/// Most intervals of what is known.
const STRATA: usize = 32;

/// Most cells of what is seen.
const CELLS: usize = 48;

/// Fewest samples of each ensemble to choose an event with.
const FEWEST: u64 = 100;

/// Among samples whose `known` lies in an interval: `seen` lies in one of some intervals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    known: RangeInclusive<i64>,
    seen: Vec<RangeInclusive<i64>>,
}

impl Event {
    /// The event with the best lower bound of epsilon at `delta` for the first samples against the
    /// second, if as many samples test it as [`Samples::split`] leaves and each bound may fail with a
    /// probability of `error`.
    pub fn choose([likely, unlikely]: [&[Sample]; 2], delta: f64, error: f64) -> Self {
        let both = || likely.iter().chain(unlikely);
        let strata = intervals(both().map(|sample| sample.known).collect(), STRATA);
        let cells = intervals(both().map(|sample| sample.seen).collect(), CELLS);
        let count = |samples: &[Sample]| {
            let mut table = vec![vec![0_u64; cells.len()]; strata.len()];
            for sample in samples {
                table[place(&strata, sample.known)][place(&cells, sample.seen)] += 1;
            }
            table
        };
        let tables = [count(likely), count(unlikely)];
        let reach = (-2.0 * error.ln()).sqrt();
        let mut best = (f64::NEG_INFINITY, Self { known: i64::MIN..=i64::MAX, seen: Vec::new() });
        for first in 0..strata.len() {
            let mut sums = [vec![0_u64; cells.len()], vec![0_u64; cells.len()]];
            for last in first..strata.len() {
                for (sum, table) in sums.iter_mut().zip(&tables) {
                    sum.iter_mut().zip(&table[last]).for_each(|(sum, count)| *sum += count);
                }
                let Some((bound, chosen)) = best_cells(&sums, delta, reach) else { continue };
                if bound > best.0 {
                    let known = *strata[first].start()..=*strata[last].end();
                    let seen = chosen.into_iter().map(|cell| cells[cell].clone()).collect();
                    best = (bound, Self { known, seen });
                }
            }
        }
        best.1
    }

    /// Samples whose `known` lies in the interval, and those of them in which the event happened.
    pub fn count(&self, samples: &[Sample]) -> (u64, u64) {
        let trials = samples.iter().filter(|sample| self.known.contains(&sample.known));
        let hit = |sample: &Sample| self.seen.iter().any(|cell| cell.contains(&sample.seen));
        trials.fold((0, 0), |(trials, hits), sample| (trials + 1, hits + u64::from(hit(sample))))
    }
}

/// The cells that make the best event, and its bound; `None` if there are too few samples.
fn best_cells([likely, unlikely]: &[Vec<u64>; 2], delta: f64, reach: f64) -> Option<(f64, Vec<usize>)> {
    let trials = [likely, unlikely].map(|counts| counts.iter().sum::<u64>());
    if trials.iter().any(|&trials| trials < FEWEST) {
        return None;
    }
    // Half a sample more in each keeps cells that one ensemble never shows in their place.
    let ratio = |cell: usize| (likely[cell] as f64 + 0.5) / (unlikely[cell] as f64 + 0.5);
    let mut order: Vec<usize> = (0..likely.len()).collect();
    order.sort_by(|&one, &other| ratio(other).total_cmp(&ratio(one)));
    let (mut hits, mut best) = ([0, 0], (f64::NEG_INFINITY, 0));
    for (taken, &cell) in order.iter().enumerate() {
        hits[0] += likely[cell];
        hits[1] += unlikely[cell];
        let p = score_bound(hits[0], trials[0], -reach) - delta;
        let q = score_bound(hits[1], trials[1], reach);
        // Where nothing is shown, the distance says which event comes closest to it.
        let bound = if p > q { (p / q).ln() } else { p - q };
        if bound > best.0 {
            best = (bound, taken + 1);
        }
    }
    order.truncate(best.1);
    Some((best.0, order))
}

/// Wilson's bound `reach` standard deviations away, at the number of trials that will test the event: a
/// quick stand-in for the exact bounds.
fn score_bound(hits: u64, trials: u64, reach: f64) -> f64 {
    let more = (CHOOSING - 1) as f64;
    let (hits, trials) = (hits as f64 * more, trials as f64 * more);
    let spread = (hits * (trials - hits) / trials + reach * reach / 4.0).sqrt();
    ((hits + reach * reach / 2.0 + reach * spread) / (trials + reach * reach)).clamp(f64::MIN_POSITIVE, 1.0)
}

/// At most `most` intervals that cover all integers and hold about equally many of the values; an
/// interval for each value if they are few.
fn intervals(mut values: Vec<i64>, most: usize) -> Vec<RangeInclusive<i64>> {
    values.sort_unstable();
    let mut distinct = values.clone();
    distinct.dedup();
    // The last interval has no end of its own.
    let mut ends: Vec<i64> = if distinct.len() <= most {
        distinct.pop();
        distinct
    } else {
        (1..most).map(|part| values[part * values.len() / most]).collect()
    };
    ends.dedup();
    let mut start = i64::MIN;
    let mut intervals: Vec<_> = ends
        .into_iter()
        .filter(|&end| end < i64::MAX)
        .map(|end| {
            let interval = start..=end;
            start = end + 1;
            interval
        })
        .collect();
    intervals.push(start..=i64::MAX);
    intervals
}

/// The interval that holds `value`.
fn place(intervals: &[RangeInclusive<i64>], value: i64) -> usize {
    intervals.partition_point(|interval| *interval.end() < value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: impl IntoIterator<Item = (i64, i64)>) -> Vec<Sample> {
        values.into_iter().map(|(known, seen)| Sample { known, seen }).collect()
    }

    #[test]
    fn intervals_cover_every_integer_once() {
        for values in [vec![], vec![3], vec![-1, 5, 5, 9], (0..1_000).collect(), vec![i64::MIN, i64::MAX]] {
            let found = intervals(values.clone(), 10);
            assert!(found.len() <= 10 && *found[0].start() == i64::MIN, "{found:?}");
            assert_eq!(*found[found.len() - 1].end(), i64::MAX);
            assert!(found.windows(2).all(|pair| pair[0].end() + 1 == *pair[1].start()), "{found:?}");
            assert!(values.iter().all(|&value| found[place(&found, value)].contains(&value)));
        }
        assert_eq!(intervals(vec![-1, 5, 5, 9], 10), [i64::MIN..=-1, 0..=5, 6..=i64::MAX]);
    }

    #[test]
    fn the_event_is_where_the_ratio_is_largest() {
        // Only where what is known is 1 do the two differ: 3 of 4 are seen as 7, against 1 of 4.
        let ensemble = |rare: i64, often: i64| {
            samples((0..4_000).map(|place| {
                let known = place % 2;
                let seen = if known == 0 || (place / 2) % 4 == 0 { rare } else { often };
                (known, if known == 0 { 7 } else { seen })
            }))
        };
        let (likely, unlikely) = (ensemble(2, 7), ensemble(7, 2));
        let event = Event::choose([&likely, &unlikely], 0.0, 1e-6);
        assert_eq!((event.count(&likely), event.count(&unlikely)), ((2_000, 1_500), (2_000, 500)));
        assert_eq!(event.known, 1..=i64::MAX);
    }

    #[test]
    fn the_choice_rests_on_a_quarter_of_the_samples() {
        let parts = Samples::split(&samples((0..100).map(|place| (place, place))));
        assert_eq!((parts.choosing.len(), parts.testing.len()), (25, 75));
        assert!(parts.choosing.iter().all(|sample| !parts.testing.contains(sample)));
    }

    #[test]
    fn too_few_samples_show_nothing() {
        let few = samples((0..20).map(|_| (0, 1)));
        let event = Event::choose([&few, &few], 0.0, 1e-6);
        assert_eq!(event.count(&few), (20, 0));
    }
}
