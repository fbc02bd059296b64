//! Times and durations as people read them. A wait is rounded up, so that it suffices.

use crate::inspection::utc;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A duration in milliseconds, in its two largest units: `250 ms`, `12 s`, `40 min`, `3 h 12 min`,
/// `2 days 5 h`.
pub fn wait(milliseconds: u64) -> String {
    let two = |ms: u64, large: u64, large_name: &str, small: u64, small_name: &str| {
        let units = ms.div_ceil(small);
        let (whole, rest) = (units / (large / small), units % (large / small));
        if rest == 0 {
            format!("{whole} {large_name}")
        } else {
            format!("{whole} {large_name} {rest} {small_name}")
        }
    };
    match milliseconds {
        0..SECOND => format!("{milliseconds} ms"),
        // What rounds up to the next unit is told in it.
        _ if milliseconds <= 59 * SECOND => format!("{} s", milliseconds.div_ceil(SECOND)),
        _ if milliseconds <= 59 * MINUTE => format!("{} min", milliseconds.div_ceil(MINUTE)),
        _ if milliseconds <= 47 * HOUR => two(milliseconds, HOUR, "h", MINUTE, "min"),
        _ => two(milliseconds, DAY, "days", HOUR, "h"),
    }
}

/// A time in milliseconds since 1970-01-01 UTC, rounded up to the minute, as `2026-01-31 23:59 UTC`.
pub fn moment(unix_ms: u64) -> String {
    utc(i64::try_from(unix_ms.div_ceil(MINUTE).saturating_mul(60)).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_in_fitting_units_and_suffice() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1 s"),
            (1001, "2 s"),
            (59_000, "59 s"),
            (59_001, "1 min"),
            (61_000, "2 min"),
            (59 * MINUTE, "59 min"),
            (59 * MINUTE + 1, "1 h"),
            (HOUR, "1 h"),
            (HOUR + 1, "1 h 1 min"),
            (3 * HOUR + 11 * MINUTE + 30 * SECOND, "3 h 12 min"),
            (26 * HOUR, "26 h"),
            (47 * HOUR + 1, "2 days"),
            (53 * HOUR - 1, "2 days 5 h"),
            (u64::MAX, "213503982334 days 15 h"),
        ] {
            assert_eq!(wait(ms), text, "{ms}");
        }
    }

    #[test]
    fn moments_are_minutes_that_have_come() {
        assert_eq!(moment(1_800_000_000_000), "2027-01-15 08:00 UTC");
        assert_eq!(moment(1_800_000_000_001), "2027-01-15 08:01 UTC");
        assert!(!moment(u64::MAX).is_empty());
    }
}
