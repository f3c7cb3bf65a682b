//! When a message that was not settled comes back, and when it stops coming back.

use std::num::NonZeroU32;
use std::time::Duration;

/// The rules of redelivery of one subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// An unsettled delivery comes back after this long.
    pub ack_wait: Duration,
    /// Waits before delivery 2, 3, …; the last one repeats. Empty: at once. Applies to expired leases and to
    /// retries that name no delay; a consumer that is gone gives its messages back at once.
    pub backoff: Vec<Duration>,
    /// After this many deliveries without a verdict of success the message is a dead letter. `None`: never.
    pub max_deliveries: Option<NonZeroU32>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { ack_wait: Duration::from_secs(30), backoff: Vec::new(), max_deliveries: None }
    }
}

impl RetryPolicy {
    /// How long to wait after `attempts` failed deliveries (1 or more).
    pub fn delay_after(&self, attempts: u32) -> Duration {
        let index = (attempts.max(1) as usize - 1).min(self.backoff.len().saturating_sub(1));
        self.backoff.get(index).copied().unwrap_or(Duration::ZERO)
    }

    /// True if a message that was delivered `attempts` times must not be delivered again.
    pub fn is_exhausted(&self, attempts: u32) -> bool {
        self.max_deliveries.is_some_and(|max| attempts >= max.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_backoff_repeats() {
        let policy = RetryPolicy {
            backoff: vec![Duration::from_secs(1), Duration::from_secs(5)],
            max_deliveries: NonZeroU32::new(3),
            ..RetryPolicy::default()
        };
        assert_eq!(policy.delay_after(1), Duration::from_secs(1));
        assert_eq!(policy.delay_after(2), Duration::from_secs(5));
        assert_eq!(policy.delay_after(9), Duration::from_secs(5));
        assert!(!policy.is_exhausted(2));
        assert!(policy.is_exhausted(3));
        assert_eq!(RetryPolicy::default().delay_after(4), Duration::ZERO);
    }
}
