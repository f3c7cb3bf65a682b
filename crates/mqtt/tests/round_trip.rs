//! Any valid packet comes back as it was.

mod packets;

use bytes::BytesMut;
use packets::Any;
use postroad_mqtt::codec::{DecodeError, Direction, Limits, Version, decode_packet, topic};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_packet_comes_back(seed: u64, level in 0..3_usize, up: bool) {
        let version = [Version::V31, Version::V311, Version::V5][level];
        let direction = if up { Direction::ToServer } else { Direction::ToClient };
        let mut random = fastrand::Rng::with_seed(seed);
        let packet = Any { random: &mut random, version }.packet(direction);
        let mut wire = BytesMut::new();
        packet.encode(version, &mut wire).unwrap();
        prop_assert_eq!(wire.len(), packet.encoded_len(version));
        let got = decode_packet(wire.freeze(), version, direction, &Limits::default());
        prop_assert_eq!(got, Ok(packet));
    }

    /// Against a plain reading of section 4.7.
    #[test]
    fn filters_match_what_they_say(filter in "(\\$|a|b|\\+|)(/(a|b|\\+|)){0,4}(/#)?|#", name in "(\\$|a|b|)(/(a|b|)){0,4}") {
        fn model(filter: &[&str], name: &[&str]) -> bool {
            match (filter, name) {
                (["#"], _) => true,
                ([], []) => true,
                (["+", filter @ ..], [_, name @ ..]) => model(filter, name),
                ([level, filter @ ..], [first, name @ ..]) => level == first && model(filter, name),
                _ => false,
            }
        }
        prop_assume!(topic::validate_filter(&filter, 128).is_ok() && topic::validate_name(&name, 128).is_ok());
        let levels: Vec<&str> = filter.split('/').collect();
        let names: Vec<&str> = name.split('/').collect();
        let hidden = name.starts_with('$') && (levels[0] == "+" || levels[0] == "#");
        prop_assert_eq!(topic::matches(&filter, &name), !hidden && model(&levels, &names));
    }
}

/// The examples of section 4.7, and those of shares.
#[test]
fn filters_match_as_in_the_specification() {
    for (filter, name, matches) in [
        ("sport/tennis/player1/#", "sport/tennis/player1", true),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
        ("sport/#", "sport", true),
        ("sport/tennis/+", "sport/tennis/player1", true),
        ("sport/tennis/+", "sport/tennis/player1/ranking", false),
        ("sport/+", "sport", false),
        ("sport/+", "sport/", true),
        ("+/+", "/finance", true),
        ("/+", "/finance", true),
        ("+", "/finance", false),
        ("#", "$SYS/a", false),
        ("+/monitor/Clients", "$SYS/monitor/Clients", false),
        ("$SYS/#", "$SYS/a", true),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
        ("ACCOUNTS", "Accounts", false),
        ("a/$b", "a/$b", true),
        ("a/+", "a/$b", true),
    ] {
        assert_eq!(topic::matches(filter, name), matches, "{filter} {name}");
    }
    assert_eq!(topic::shared("$share/g/a/#"), Some(Ok(topic::Shared { group: "g", filter: "a/#" })));
    let alone = Some(Err(DecodeError::ShareName));
    assert_eq!(topic::shared("$share"), alone, "nobody means it as a filter");
}
