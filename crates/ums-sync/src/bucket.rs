//! The bandwidth limit: a token bucket that knows no clock.

use std::num::NonZeroU64;
use std::time::Duration;

/// Lets `rate` bytes pass per second, with bursts of a tenth of a second.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    rate: NonZeroU64,
    /// Tokens in bytes; negative when more went through than there were.
    tokens: f64,
    /// When the tokens were last counted, on the caller's clock.
    counted: Duration,
}

impl Bucket {
    pub(crate) fn new(rate: NonZeroU64, now: Duration) -> Self {
        Self {
            rate,
            tokens: 0.0,
            counted: now,
        }
    }

    /// Bytes that should be written at once, so that the wait after them stays short.
    pub(crate) fn slice(&self) -> usize {
        usize::try_from(self.rate.get() / 10)
            .unwrap_or(usize::MAX)
            .clamp(1024, 256 * 1024)
    }

    /// Takes `bytes` at `now`; they may pass after the wait that is returned.
    pub(crate) fn take(&mut self, bytes: usize, now: Duration) -> Duration {
        let rate = self.rate.get() as f64;
        let passed = now.saturating_sub(self.counted).as_secs_f64();
        self.counted = now;
        self.tokens = (self.tokens + passed * rate).min(rate / 10.0) - bytes as f64;
        Duration::try_from_secs_f64((-self.tokens / rate).max(0.0)).unwrap_or(Duration::ZERO)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_rate_holds_over_time_and_bursts_are_small() {
        let mut bucket = Bucket::new(NonZeroU64::new(1_000_000).unwrap(), Duration::ZERO);
        let (mut now, mut sent) = (Duration::ZERO, 0);
        while sent < 10_000_000 {
            now += bucket.take(50_000, now);
            sent += 50_000;
        }
        assert!((now.as_secs_f64() - 10.0).abs() < 0.1, "{now:?}");
        // After a long silence only a tenth of a second's worth passes without waiting.
        now += Duration::from_secs(3600);
        assert_eq!(bucket.take(100_000, now), Duration::ZERO);
        assert!(bucket.take(100_000, now) >= Duration::from_millis(99));
    }
}
