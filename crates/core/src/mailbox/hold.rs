//! What a consumer holds, for whoever drives the mailbox: which deliveries, how much, and giving back what nobody saw.

use super::{ConsumerId, Mailbox};

impl Mailbox {
    /// How many messages `consumer` holds, and their bytes.
    pub fn usage(&self, consumer: ConsumerId) -> (u32, u64) {
        self.consumers.get(&consumer).map_or((0, 0), |state| (state.count, state.bytes))
    }

    /// Which delivery of `seq` it is that `consumer` holds; `None` if it does not.
    pub fn attempt(&self, consumer: ConsumerId, seq: u64) -> Option<u32> {
        self.leases.get(seq).filter(|lease| lease.consumer == consumer).map(|lease| lease.attempt)
    }

    /// The size of a message that `consumer` holds is known better than when it was taken. False if it does not hold it.
    pub fn resize(&mut self, consumer: ConsumerId, seq: u64, bytes: u32) -> bool {
        let lease = self.leases.get_mut(seq).filter(|lease| lease.consumer == consumer);
        let (Some(lease), Some(state)) = (lease, self.consumers.get_mut(&consumer)) else { return false };
        state.bytes = state.bytes - u64::from(lease.bytes) + u64::from(bytes);
        lease.bytes = bytes;
        true
    }

    /// A message that was taken was not delivered after all: it is ready as before, and this attempt does not count.
    /// False if `consumer` does not hold it.
    pub fn give_back(&mut self, consumer: ConsumerId, seq: u64) -> bool {
        if !self.holds(consumer, seq) {
            return false;
        }
        if let Some(lease) = self.release(seq) {
            self.ready.insert(seq, seq, lease.priority);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Verdict, Window};
    use super::*;
    use crate::retry::RetryPolicy;

    const ME: ConsumerId = ConsumerId(1);

    fn three_taken() -> Mailbox {
        let mut mailbox = Mailbox::new(RetryPolicy::default(), 0);
        mailbox.attach(ME, Window { count: 3, bytes: 100 });
        mailbox.offer(1, 5, 0);
        assert_eq!(mailbox.take(ME, 0, 9, |_| 10, &mut Vec::new()), 3);
        mailbox
    }

    #[test]
    fn what_is_given_back_comes_first_again_and_was_never_tried() {
        let mut mailbox = three_taken();
        assert!(mailbox.give_back(ME, 3) && mailbox.give_back(ME, 2));
        assert!(!mailbox.give_back(ME, 2) && !mailbox.give_back(ConsumerId(2), 1));
        assert_eq!(mailbox.usage(ME), (1, 10));
        assert_eq!(mailbox.failures().count(), 0);
        let mut taken = Vec::new();
        mailbox.take(ME, 0, 9, |_| 10, &mut taken);
        assert_eq!(taken.iter().map(|t| (t.seq, t.attempt)).collect::<Vec<_>>(), [(2, 1), (3, 1)]);
    }

    #[test]
    fn a_better_size_counts_until_the_verdict() {
        let mut mailbox = three_taken();
        assert!(mailbox.resize(ME, 2, 75) && !mailbox.resize(ME, 4, 1));
        assert_eq!(mailbox.usage(ME), (3, 95));
        assert!(mailbox.settle(ME, 1, Verdict::Ack, 0, &mut Vec::new()).is_ok());
        // One place is free, and 15 bytes.
        assert_eq!(mailbox.take(ME, 0, 9, |_| 16, &mut Vec::new()), 0);
        assert!(mailbox.settle(ME, 2, Verdict::Ack, 0, &mut Vec::new()).is_ok());
        assert_eq!(mailbox.usage(ME), (1, 10));
    }

    #[test]
    fn an_attempt_is_that_of_its_holder() {
        let mut mailbox = three_taken();
        let again = Verdict::Retry { after: None, reason: None };
        assert!(mailbox.settle(ME, 1, again, 0, &mut Vec::new()).is_ok());
        assert_eq!(mailbox.attempt(ME, 1), None);
        mailbox.take(ME, 0, 1, |_| 10, &mut Vec::new());
        assert_eq!((mailbox.attempt(ME, 1), mailbox.attempt(ME, 2)), (Some(2), Some(1)));
        assert_eq!(mailbox.attempt(ConsumerId(2), 1), None);
    }
}
