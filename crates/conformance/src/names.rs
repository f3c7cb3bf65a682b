//! The names of the cases as tokens, since a macro can make a test only of what it sees.

/// The names, for [`conformance_tests!`]. A test (`tests/memory.rs`) holds them to the registry.
#[doc(hidden)]
#[macro_export]
#[rustfmt::skip]
macro_rules! __for_all_cases {
    ($then:ident) => {
        $crate::$then! {
            basic { declares_what_it_can, send_and_receive, every_subscription_gets_all, topics_are_apart, filters_join_topics, many_publishers, many_topics_at_once }
            content { odd_bytes, empty_payload, headers, repeated_headers, fields, large_payload, payload_over_the_limit }
            publish { confirms_in_pipeline, positions_grow, confirmed_is_stored, batch, batch_fails_in_part, duplicate }
            settle { ack_is_final, ack_is_only_for_its_own, retry, retry_with_delay, delay_holds_up_nobody, backoff, discard_is_final, dropped_delivery, dropped_by_a_panic, attempts_are_counted, redelivered_is_flagged, dead_letter, too_many_deliveries, together }
            lease { ends, is_counted_as_an_attempt, old_token_is_stale, extend, extend_too_late }
            flow { window_of_messages, window_of_one, window_of_bytes, larger_than_the_window, retry_makes_room, slow_consumer_holds_up_nobody }
            order { of_a_subject, of_everything, of_a_key, after_a_retry, of_priorities }
            groups { share, two_groups_get_all, many_consumers, consumer_gone, exclusive_is_busy, need_a_name }
            replay { from_new, from_first, from_last, from_sequence, from_time, goes_on_with_new, acks_of_others_do_not_matter }
            checkpoint { a_name_keeps_its_place, a_name_gets_what_it_missed, floor_stays_below_the_open_one, what_was_out_comes_first, names_are_apart, forget, restart_replays_the_rest }
            lifecycle { consumer_gone, publisher_gone, drain_waits_for_verdicts, drain_ends_at_its_deadline, drain_of_nothing, drain_fetches_nothing, close_flushes, close_while_busy, close_returns_the_rest, closed_is_closed, a_dropped_wait_takes_nothing }
            connection { cut_consumer, cut_publisher, loss_is_noticed, attempts_survive_a_cut, half_open_consumer, half_open_publisher, pause, restart, kill, attempts_survive_a_restart }
            load { verdicts_by_chance, through_cuts, through_silence, through_pauses, through_restarts, through_kills }
        }
    };
}

/// One `#[test]` for each case, in a module for each group, and one more that compares what is run with
/// `capabilities/NAME.toml` beside the crate's manifest. The harness is made anew for each test.
///
/// ```
/// # use postroad_conformance::memory::MemoryHarness as MyHarness;
/// postroad_conformance::conformance_tests!(MyHarness::new());
/// ```
#[macro_export]
macro_rules! conformance_tests {
    ($harness:expr) => {
        fn __harness() -> impl $crate::Harness {
            $harness
        }

        #[test]
        fn what_is_tested_is_as_committed() {
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/capabilities");
            if let Err(why) = $crate::check_certificate(&__harness(), ::std::path::Path::new(directory)) {
                panic!("{why}");
            }
        }

        $crate::__for_all_cases!(__tests);
    };
}

/// The tests of [`conformance_tests!`].
#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ($($group:ident { $($name:ident),* })*) => {
        $(mod $group {
            $(#[test]
            fn $name() {
                $crate::test_case(&super::__harness(), concat!(stringify!($group), "/", stringify!($name)));
            })*
        })*
    };
}

/// The names as text.
#[doc(hidden)]
#[macro_export]
macro_rules! __names {
    ($($group:ident { $($name:ident),* })*) => {
        [$($(concat!(stringify!($group), "/", stringify!($name))),*),*]
    };
}
