//! The lies.

use std::fmt;

macro_rules! lies {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// One way to break the contract.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Lie {
            $($(#[$doc])+ $name,)+
        }

        impl Lie {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
        }
    };
}

lies! {
    /// Now and then a publish is confirmed and not stored.
    LosesConfirmed,
    /// A publish is confirmed when it comes and stored when the next one does.
    ConfirmsBeforeStoring,
    /// A publish is stored and never answered.
    NeverConfirms,
    /// Now and then a publish is refused and stored.
    RefusesAndStores,
    /// A payload over the limit is confirmed and not stored.
    ConfirmsTooLarge,
    /// A payload over the limit is cut and stored.
    CutsTooLarge,
    /// A batch is confirmed as a whole, whatever was refused of it.
    BatchHidesFailures,
    /// A batch with a bad item is refused as a whole.
    BatchFailsTogether,
    /// The same message id again is stored again.
    IgnoresDedup,
    /// Everything is confirmed as a duplicate.
    CallsAllDuplicates,
    /// Receipts have the position of the next message.
    WrongPosition,
    /// Its publishers declare other capabilities.
    DeclaresOther,
    /// Headers do not arrive.
    DropsHeaders,
    /// Of headers with the same name one arrives.
    MergesHeaders,
    /// Header values arrive as text.
    TextHeaders,
    /// Keys, content types and correlations do not arrive.
    DropsFields,
    /// Messages arrive under new ids.
    RenamesMessages,
    /// Of a payload 64 KiB arrive.
    CutsPayload,
    /// What is no UTF-8 is replaced.
    LossyUtf8,
    /// Space around a payload is dropped.
    TrimsPayload,
    /// Empty payloads do not arrive.
    LosesEmpty,
    /// Other topics arrive, too.
    MixesTopics,
    /// The attempt is always 1.
    ForgetsAttempts,
    /// Attempts are counted twice.
    DoublesAttempts,
    /// Nothing is called redelivered.
    ForgetsRedelivered,
    /// Two by two, the later one first.
    Reorders,
    /// Now and then a delivery comes twice.
    Duplicates,
    /// Now and then a delivery is lost on its way.
    LosesDeliveries,
    /// Now and then an acked message comes again.
    DeliversAfterAck,
    /// A window has no end in messages.
    IgnoresWindowCount,
    /// A window has no end in bytes.
    IgnoresWindowBytes,
    /// Priorities have no effect.
    IgnoresPriority,
    /// An ack is answered and forgotten.
    AckWithoutEffect,
    /// An ack settles everything that was delivered before, too.
    AckSettlesAllBefore,
    /// Retry is an ack.
    RetryIsAck,
    /// Retry is answered and forgotten.
    RetryWithoutEffect,
    /// Retry with a delay is Retry.
    IgnoresDelay,
    /// Backoff has no effect.
    IgnoresBackoff,
    /// Discard is Retry.
    DiscardIsRetry,
    /// A dead letter is Discard.
    DeadLetterIsDiscard,
    /// A dead letter has no reason.
    DeadLetterWithoutReason,
    /// A dead letter goes to the dead letters and comes again, too.
    DeadLetterComesAgain,
    /// There is no maximum of deliveries.
    IgnoresMaxDeliveries,
    /// A dropped delivery is acked.
    DroppedIsAck,
    /// A dropped delivery comes again only at the end of its lease.
    DroppedIsForgotten,
    /// Leases do not end.
    LeaseNeverEnds,
    /// Leases end after half their time.
    LeaseEndsEarly,
    /// A longer lease is answered and not given.
    ExtendWithoutEffect,
    /// A verdict that comes too late is answered with yes.
    StaleIsOk,
    /// A verdict that comes too late settles the newer delivery.
    StaleSettlesNewer,
    /// What a consumer held that went stays with it.
    GoneKeepsMessages,
    /// A name starts anew each time.
    ForgetsNames,
    /// Each consumer of a group gets all.
    GroupsGetAll,
    /// An exclusive subscription is shared.
    SharesExclusive,
    /// A deleted name stays.
    ForgetDoesNothing,
    /// From now on is from the first.
    StartsNewAtFirst,
    /// From the first is from now on.
    StartsFirstAtNew,
    /// From the last is from the first.
    StartsLastAtFirst,
    /// From a position is from the one behind it.
    SequenceIsOneLate,
    /// From a time is from the first.
    TimeIsFirst,
    /// A drain does not wait for verdicts.
    DrainDoesNotWait,
    /// A drain has no deadline.
    DrainHasNoDeadline,
    /// A drain goes on fetching.
    DrainFetches,
    /// A drain says that nothing was settled.
    DrainMiscounts,
    /// A closed backend goes on.
    CloseDoesNothing,
    /// A close never ends.
    CloseHangs,
    /// A drain that ran into its deadline says that all was settled.
    DrainSaysAllSettled,
    /// A close settles what its consumers still hold.
    CloseSettlesTheRest,
    /// Of a lost connection its publisher never hears: no answer, and no error.
    PublisherNeverHears,
    /// Of a lost connection its consumer never hears: no delivery, and no error.
    ConsumerNeverHears,
    /// What was published into a connection that died is confirmed.
    ConfirmsTheLost,
    /// What was published into a connection that died is refused: surely not stored.
    RefusesTheLost,
    /// After a loss the subscription is made, and nothing comes.
    SilentAfterLoss,
    /// After a loss the verdicts of the old connection are answered with yes.
    TakesOldTokens,
    /// After a loss the verdicts of the old connection settle the deliveries of the new one.
    OldTokensSettleNewer,
    /// After a loss what was acked before comes again.
    DeliversAckedAfterLoss,
    /// After a loss attempts begin at 1 again.
    ForgetsAttemptsAfterLoss,
    /// A consumer behind a dead connection keeps what it holds, beyond the end of its lease. Of the broker, so that
    /// the connection has to be in front of the liar.
    LostKeepsMessages,
}

impl Lie {
    /// Those about connections and their ends, each with the case that must notice it whatever else does.
    pub const OF_CONNECTIONS: &'static [(Self, &'static str)] = &[
        (Self::DrainSaysAllSettled, "lifecycle/drain_ends_at_its_deadline"),
        (Self::CloseSettlesTheRest, "lifecycle/close_returns_the_rest"),
        (Self::PublisherNeverHears, "connection/half_open_publisher"),
        (Self::ConsumerNeverHears, "connection/loss_is_noticed"),
        (Self::ConfirmsTheLost, "connection/half_open_publisher"),
        (Self::RefusesTheLost, "connection/half_open_publisher"),
        (Self::SilentAfterLoss, "connection/cut_consumer"),
        (Self::TakesOldTokens, "connection/cut_consumer"),
        (Self::OldTokensSettleNewer, "connection/cut_consumer"),
        (Self::DeliversAckedAfterLoss, "connection/cut_consumer"),
        (Self::ForgetsAttemptsAfterLoss, "connection/attempts_survive_a_cut"),
        (Self::LostKeepsMessages, "connection/half_open_consumer"),
    ];
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
