//! Spending over time, from real ledger files with a clock that the test moves.

mod support;

use std::{sync::Arc, time::Duration};

use concilium_privacy::{
    BurnDown, Charge, ContentDigest, Event, Forecast, Ledger, ManualClock, NanoRho, RedbLedger, RequestId,
    RequestKey, Settlement, TaskPolicy, Total, burn_down,
};
use support::ledger::{ROW, place, policy, result};

const HOUR: u64 = 3_600_000;
/// A time in 2026 that is no full hour.
const START: u64 = 1_790_000_123_456;

/// Charges one request after the other, each under an id of its own.
struct Spender {
    ledger: RedbLedger,
    clock: Arc<ManualClock>,
    policy: TaskPolicy,
    requests: u128,
    _folder: tempfile::TempDir,
}

impl Spender {
    fn new(rows: u64) -> Self {
        let (folder, path) = place();
        let clock = Arc::new(ManualClock::new(START));
        let ledger = RedbLedger::create(&path).expect("a new ledger").with_clock(Arc::clone(&clock));
        Self { ledger, clock, policy: policy("digits", 3, rows, None), requests: 0, _folder: folder }
    }

    fn spend(&mut self, rows: u32) {
        self.spend_on(&self.policy.clone(), "clinic", rows);
    }

    fn spend_on(&mut self, policy: &TaskPolicy, client: &str, rows: u32) {
        self.spend_together(policy, client, rows, 1);
    }

    /// Many requests in one commit.
    fn spend_together(&mut self, policy: &TaskPolicy, client: &str, rows: u32, requests: usize) {
        let charge = |number: u128| {
            let key = RequestKey {
                task: policy.task.clone(),
                epoch: policy.epoch,
                client: client.to_owned(),
                request: RequestId(number.to_le_bytes()),
            };
            Charge::new(key, ContentDigest([1; 32]), rows, policy, &[]).expect("a valid charge")
        };
        let charges: Vec<_> = (0..requests).map(|index| charge(self.requests + index as u128)).collect();
        self.requests += requests as u128;
        let reserved = self.ledger.reserve(&charges).into_iter();
        let batch = reserved
            .map(|reserved| Settlement::in_full(reserved.expect("within the budget"), result("share")));
        self.ledger.commit(batch.collect()).expect("a commit");
    }

    fn burn_down(&self) -> BurnDown {
        let mut burn_down = BurnDown::new([("digits".to_owned(), 3)]);
        assert!(burn_down.read(&self.ledger, usize::MAX).expect("the log is read"));
        burn_down
    }

    fn left(&self) -> NanoRho {
        let spent = self.ledger.spent("digits", 3).expect("the spending").total.rho;
        self.policy.cap_total.saturating_sub(spent)
    }

    fn forecast(&self) -> Forecast {
        use concilium_privacy::Clock as _;
        self.burn_down().forecast("digits", 3, self.left(), self.clock.now_ms())
    }
}

#[test]
fn entries_tell_time_client_and_price_in_pages() {
    let mut spender = Spender::new(100);
    spender.spend(2);
    spender.clock.advance_ms(5);
    let other = policy("poems", 1, 10, None);
    spender.spend_on(&other, "practice", 3);
    let entries = spender.ledger.entries(0, 10).expect("the log");
    assert_eq!(entries.len(), 2);
    let last = &entries[1];
    assert_eq!((last.number, last.time_ms), (1, START + 5));
    let Event::Committed(committed) = &last.event else { panic!("another event: {last:?}") };
    assert_eq!(committed.key.client, "practice");
    let charged = Total { rho: NanoRho::new(3 * ROW), requests: 1, rows: 3 };
    assert_eq!(last.charged(), Some(("poems", 1, charged)));
    assert_eq!(spender.ledger.entries(0, 1).expect("the log"), entries[..1]);
    assert_eq!(spender.ledger.entries(1, 10).expect("the log"), entries[1..]);
    assert_eq!(spender.ledger.entries(2, 10).expect("the log"), []);
    // Entries of a task that is not followed are passed over.
    let burn_down = spender.burn_down();
    assert_eq!(burn_down.entries_read(), 2);
    assert!(burn_down.curve("poems", 1).is_none());
    assert_eq!(
        burn_down.curve("digits", 3).expect("a curve").points().last().expect("points").1.units(),
        2 * ROW
    );
}

#[test]
fn the_curve_ends_at_the_ledgers_total_and_stays_small_over_years() {
    let mut spender = Spender::new(1_000_000);
    let mut followed = BurnDown::new([("digits".to_owned(), 3)]);
    for step in 0..1500_u64 {
        spender.spend(1 + (step % 3) as u32);
        spender.clock.advance_ms(20 * HOUR);
        if step % 7 == 0 {
            // Entry by entry as they come, or all at once: the same curve.
            followed.read(&spender.ledger, usize::MAX).expect("the log is read");
        }
    }
    followed.read(&spender.ledger, usize::MAX).expect("the log is read");
    let total = spender.ledger.spent("digits", 3).expect("the spending").total.rho;
    let at_once = spender.burn_down();
    let points = at_once.curve("digits", 3).expect("a curve").points();
    assert_eq!(points, followed.curve("digits", 3).expect("a curve").points());
    assert!(points.len() <= burn_down::MOST_STEPS + 1, "{} points", points.len());
    assert!(points.len() > burn_down::MOST_STEPS / 4, "{} points", points.len());
    assert_eq!(points[0], (START, NanoRho::ZERO));
    assert_eq!(points.last().expect("points").1, total);
    assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
}

#[test]
fn a_long_log_is_read_in_parts() {
    let mut spender = Spender::new(1_000_000);
    spender.spend_together(&spender.policy.clone(), "clinic", 1, 2500);
    let mut burn_down = BurnDown::new([("digits".to_owned(), 3)]);
    assert!(!burn_down.read(&spender.ledger, 1000).expect("the log is read"));
    assert_eq!(burn_down.entries_read(), 1024);
    assert!(!burn_down.read(&spender.ledger, 1000).expect("the log is read"));
    assert!(burn_down.read(&spender.ledger, 1000).expect("the log is read"));
    assert_eq!(burn_down.entries_read(), 2500);
}

#[test]
fn a_steady_rate_is_continued() {
    let mut spender = Spender::new(1_000);
    for _ in 0..48 {
        spender.spend(1);
        spender.clock.advance_ms(HOUR);
    }
    let now = START + 48 * HOUR;
    let Forecast::At { time_ms, basis, spent } = spender.forecast() else { panic!("a forecast") };
    // The 24th hour has only begun, and nothing was spent in it yet.
    assert!(basis > Duration::from_secs(23 * 3600) && basis <= Duration::from_secs(24 * 3600), "{basis:?}");
    assert_eq!(spent.units(), 23 * ROW);
    let hours = (time_ms - now) as f64 / HOUR as f64;
    // 952 rows are left, at a row for each hour.
    assert!((hours - 952.0).abs() < 0.05 * 952.0, "{hours} hours");
}

#[test]
fn a_forecast_says_when_it_would_be_a_guess() {
    let mut spender = Spender::new(20);
    assert_eq!(spender.forecast(), Forecast::NothingSpent);
    (0..6).for_each(|_| spender.spend(1));
    spender.clock.advance_ms(HOUR / 2);
    let age = Duration::from_millis(HOUR / 2);
    assert_eq!(spender.forecast(), Forecast::TooLittleData { charges: 6, age });
    // Old enough: six rows in an hour and a half; the fourteen left last three and a half hours.
    spender.clock.advance_ms(HOUR);
    let Forecast::At { time_ms, basis, .. } = spender.forecast() else { panic!("a forecast") };
    assert_eq!(basis, Duration::from_millis(3 * HOUR / 2));
    assert_eq!(time_ms, START + 3 * HOUR / 2 + 14 * HOUR / 4);
    // Two days later the rate is that of the week.
    spender.clock.advance_ms(48 * HOUR);
    let Forecast::At { basis, .. } = spender.forecast() else { panic!("a forecast") };
    assert_eq!(basis, Duration::from_millis(3 * HOUR / 2 + 48 * HOUR));
    spender.clock.advance_ms(8 * 24 * HOUR);
    assert_eq!(spender.forecast(), Forecast::Idle);
    spender.spend(1);
    let Forecast::TooLittleData { charges: 1, .. } = spender.forecast() else { panic!("one charge") };
    spender.spend(13);
    assert_eq!(spender.forecast(), Forecast::Exhausted);
}

#[test]
fn a_clock_that_jumps_does_no_harm() {
    let mut spender = Spender::new(1_000);
    for time in [START, 0, u64::MAX, START + 1, START - HOUR] {
        spender.clock.set_ms(time);
        spender.spend(1);
        let _ = spender.forecast();
    }
    let points = spender.burn_down().curve("digits", 3).expect("a curve").points();
    assert!(points.len() <= burn_down::MOST_STEPS + 1);
    assert_eq!(points.last().expect("points").1.units(), 5 * ROW);
}
