//! When to repeat a call: bounded attempts, growing pauses with jitter.

use std::time::Duration;

use rand::{TryRng as _, rngs::SysRng};

use crate::connection::ServerError;

/// Longest time that a server is waited for because it asks for it. A caller is told of a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How often and how fast a call is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// Longest pause before the second attempt.
    pub first_pause: Duration,
    /// Longest pause before any attempt, as far as no server asks for more.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    /// 6 attempts, pauses from 200 ms doubling to 5 s: about ten seconds in all.
    fn default() -> Self {
        Self { attempts: 6, first_pause: Duration::from_millis(200), longest_pause: Duration::from_secs(5) }
    }
}

impl RetryPolicy {
    /// One attempt, no repeats.
    pub const ONCE: Self = Self { attempts: 1, first_pause: Duration::ZERO, longest_pause: Duration::ZERO };

    /// The pause after attempt `attempt` (from 1) failed, or `None` if it was the last one.
    ///
    /// The pause doubles with every attempt and is drawn between its half and the whole, by `position`
    /// in 0 to 1, so that many clients do not come back at the same moment. A server that names a time
    /// (`google.rpc.RetryInfo`) is not called before it, and not at all if that is longer than a minute.
    pub fn pause(&self, attempt: u32, retry_after: Option<Duration>, position: f64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        if retry_after.is_some_and(|asked| asked > LONGEST_PAUSE) {
            return None;
        }
        let doubled = self.first_pause.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
        let pause = doubled.min(self.longest_pause).mul_f64(0.5 + 0.5 * position.clamp(0.0, 1.0));
        Some(match retry_after {
            Some(asked) => asked.saturating_add(pause),
            None => pause,
        })
    }

    /// [`Self::pause`] at a random position, or `None` if the error is not to be repeated.
    pub fn pause_after(&self, attempt: u32, error: &ServerError) -> Option<Duration> {
        if error.retryable() { self.random_pause(attempt, error.retry_after()) } else { None }
    }

    fn random_pause(&self, attempt: u32, retry_after: Option<Duration>) -> Option<Duration> {
        // Without randomness the whole pause is waited; nothing secret hangs on it.
        let position = SysRng.try_next_u32().map_or(1.0, |word| f64::from(word) / f64::from(u32::MAX));
        self.pause(attempt, retry_after, position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end() {
        let policy = RetryPolicy::default();
        let pauses: Vec<_> =
            (1..=6).map(|attempt| policy.pause(attempt, None, 1.0).map(|pause| pause.as_millis())).collect();
        assert_eq!(pauses, [Some(200), Some(400), Some(800), Some(1600), Some(3200), None]);
        let long = RetryPolicy { attempts: u32::MAX, ..policy };
        assert_eq!(long.pause(1_000_000, None, 1.0), Some(policy.longest_pause));
        assert_eq!(policy.pause(1, None, 0.0), Some(Duration::from_millis(100)));
        assert_eq!(RetryPolicy::ONCE.pause(1, None, 0.5), None);
    }

    #[test]
    fn a_server_is_not_called_before_the_time_it_names() {
        let policy = RetryPolicy::default();
        let asked = Duration::from_secs(9);
        for _ in 0..100 {
            let pause = policy.random_pause(1, Some(asked)).unwrap();
            assert!(pause >= asked && pause <= asked + policy.first_pause, "{pause:?}");
        }
        let longest = policy.pause(1, Some(LONGEST_PAUSE), 1.0);
        assert_eq!(longest, Some(LONGEST_PAUSE + policy.first_pause));
        assert_eq!(policy.pause(1, Some(LONGEST_PAUSE + Duration::from_millis(1)), 1.0), None);
    }
}
