//! What becomes of a delivery.

use std::borrow::Cow;
use std::time::Duration;

/// The verdict on a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Done; it never comes again.
    Ack,
    /// Not done; it comes again.
    Retry {
        /// How long it waits first. `None`: as the subscription's backoff says, else at once.
        after: Option<Duration>,
    },
    /// It cannot be done; it goes to the dead letters.
    DeadLetter {
        /// Why, for the person who will read it there.
        reason: Cow<'static, str>,
    },
    /// Not done and not wanted; it never comes again and nobody keeps it.
    Discard,
}

impl Outcome {
    /// [`Outcome::Retry`] with the subscription's backoff.
    pub const fn retry() -> Self {
        Self::Retry { after: None }
    }

    /// [`Outcome::Retry`] after `delay`.
    pub const fn retry_after(delay: Duration) -> Self {
        Self::Retry { after: Some(delay) }
    }

    /// [`Outcome::DeadLetter`] with `reason`.
    pub fn dead_letter(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::DeadLetter { reason: reason.into() }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Ack => 0,
            Self::Discard => 1,
            Self::DeadLetter { .. } => 2,
            Self::Retry { .. } => 3,
        }
    }

    /// The worse of two outcomes of one message: Ack, Discard, DeadLetter, Retry, in this order. Retry is the worst,
    /// because only it still has work to do; of two retries the later one; of two dead letters the first reason.
    ///
    /// ```
    /// use postroad_core::Outcome;
    ///
    /// assert_eq!(Outcome::Ack.worse(Outcome::retry()), Outcome::retry());
    /// assert_eq!(Outcome::dead_letter("bad").worse(Outcome::Ack), Outcome::dead_letter("bad"));
    /// ```
    pub fn worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Retry { after: one }, Self::Retry { after: two }) => Self::Retry { after: one.max(two) },
            (one, two) if one.rank() >= two.rank() => one,
            (_, two) => two,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Ack),
            Just(Outcome::Discard),
            Just(Outcome::dead_letter("r")),
            prop::option::of(0..3u64)
                .prop_map(|after| Outcome::Retry { after: after.map(Duration::from_secs) }),
        ]
    }

    proptest! {
        #[test]
        fn worse_is_a_lattice(a in any_outcome(), b in any_outcome(), c in any_outcome()) {
            prop_assert_eq!(a.clone().worse(a.clone()), a.clone());
            prop_assert_eq!(a.clone().worse(b.clone()), b.clone().worse(a.clone()));
            prop_assert_eq!(a.clone().worse(b.clone()).worse(c.clone()), a.clone().worse(b.worse(c)));
            prop_assert_eq!(a.clone().worse(Outcome::Ack), a);
        }
    }
}
