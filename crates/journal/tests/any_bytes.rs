//! Any bytes as segment files: no panic, nothing invented, and verify, open and repair agree. The fuzz target `journal_recovery`
//! checks the same.

#[path = "common/any_bytes.rs"]
mod any_bytes;

use proptest::prelude::*;

/// A line that is nearly a record, with a tail that the check makes right.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let seq = prop_oneof![6 => 0..8_u64, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    let kind = prop_oneof![
        8 => prop::sample::select(vec!["pub", "pub", "pub", "pub", "ack", "gap", "seg", "cut"]).prop_map(str::to_owned),
        1 => "[a-z]{0,3}",
    ];
    let fields = prop_oneof![
        4 => Just(",\"e\":1".to_owned()),
        2 => (-3..3_i64).prop_map(|p| format!(",\"p\":{p},\"e\":{{}}")),
        1 => Just(",\"i\":\"a\\\"b\",\"x\":\"text\"".to_owned()),
        1 => Just(",\"b\":\"\"".to_owned()),
        2 => (0..9_u64, 0..9_u64).prop_map(|(first, last)| format!(",\"first\":{first},\"last\":{last}")),
        1 => any::<u64>().prop_map(|was| format!(",\"was\":{was}")),
        1 => "[\\PC]{0,12}",
    ];
    (seq, kind, any::<bool>(), fields, any::<u8>()).prop_map(|(seq, kind, mark, fields, damage)| {
        let mark = if mark { ",\"m\":1" } else { "" };
        let tail = match damage {
            0..4 => "",
            4..8 => ",\"c\":\"00000000\"}\n\n\n",
            8..10 => ",\"c\":\"00000000\"}\u{fffd}\n",
            _ => ",\"c\":\"00000000\"}\n",
        };
        format!("{{\"s\":{seq},\"t\":5,\"k\":\"{kind}\"{mark}{fields}{tail}").into_bytes()
    })
}

/// Lines in the right order, so that most of them are accepted.
fn good_lines() -> impl Strategy<Value = Vec<u8>> {
    (1..4_u64, 0..8_u64).prop_map(|(first, count)| {
        (first..first + count)
            .map(|s| {
                format!("{{\"s\":{s},\"t\":5,\"k\":\"pub\",\"m\":1,\"e\":{s},\"c\":\"00000000\"}}\n")
                    .into_bytes()
            })
            .collect::<Vec<_>>()
            .concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes(data in prop::collection::vec(any::<u8>(), 0..400)) {
        any_bytes::check(&data);
    }

    #[test]
    fn nearly_records(
        mode in any::<u8>(),
        parts in prop::collection::vec(prop_oneof![3 => line(), 2 => good_lines(), 1 => Just(vec![0xFF])], 0..12),
    ) {
        let mut data = vec![mode];
        data.extend(parts.concat());
        any_bytes::check(&data);
    }
}
