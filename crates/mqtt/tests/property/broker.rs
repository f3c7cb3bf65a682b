//! Any bytes on connections to the broker: no panic, bounded memory, and what neighbours do goes on.

use bytes::BytesMut;
use postroad_journal::storage::{CrashMode, SimStorage};
use postroad_mqtt::codec::{Connect, Packet, Utf8, Version};

use super::rig::{Rig, Stranger};

/// One byte of mode, then steps: what, how long, and for some as many bytes.
pub(crate) fn check(data: &[u8]) {
    let [mode, steps @ ..] = data else { return };
    let version = match mode & 3 {
        0 => Version::V31,
        1 => Version::V311,
        _ => Version::V5,
    };
    let mut rig = Rig::open(SimStorage::new(1), mode & 4 != 0).expect("an empty disk");
    let mut unknown = rig.stranger(None);
    let mut known = rig.stranger(None);
    let greet = |rig: &mut Rig, stranger: &mut Stranger, clean: bool| {
        let mut connect = Connect::new(version, Utf8::from_static("known"));
        connect.clean_start = clean;
        if version.is_v5() {
            connect.properties.session_expiry_interval = Some(60);
            connect.properties.topic_alias_maximum = Some(2);
        }
        let mut bytes = BytesMut::new();
        Packet::from(connect).encode(version, &mut bytes).expect("a packet");
        stranger.send(rig, &bytes);
        stranger.read(rig);
    };
    greet(&mut rig, &mut known, true);
    run(&mut rig, steps, |rig, step| match step {
        Step::Bytes(0, bytes) => unknown.send(rig, bytes),
        Step::Bytes(_, bytes) => known.send(rig, bytes),
        Step::Read => {
            unknown.read(rig);
            known.read(rig);
        }
        Step::Again(how) => {
            known.again(rig);
            greet(rig, &mut known, how & 1 == 0);
        }
        Step::Crash(mode) => {
            rig.crash(mode);
            unknown.dial(rig);
            known.dial(rig);
            greet(rig, &mut known, false);
        }
    });
}

/// What strangers do.
pub(super) enum Step<'a> {
    /// One of three sends this.
    Bytes(u8, &'a [u8]),
    /// They read what waits.
    Read,
    /// A connection is cut, and its peer comes again.
    Again(u8),
    /// The broker dies.
    Crash(CrashMode),
}

/// Takes the steps; the neighbours exchange a message now and then, and at the end.
pub(super) fn run(rig: &mut Rig, mut steps: &[u8], mut take: impl FnMut(&mut Rig, Step<'_>)) {
    let (mut count, mut crashes) = (0, 0);
    while let [what, len, rest @ ..] = steps {
        steps = rest;
        match what % 8 {
            sender @ 0..=2 => {
                let (bytes, rest) = rest.split_at((usize::from(*len) + 1).min(rest.len()));
                steps = rest;
                take(rig, Step::Bytes(sender, bytes));
            }
            3 => rig.pass(u64::from(*len) * 250),
            4 => take(rig, Step::Read),
            5 => rig.commit(),
            6 => take(rig, Step::Again(*len)),
            _ if crashes < 3 => {
                crashes += 1;
                let mode = match len % 3 {
                    0 => CrashMode::DropUnsynced,
                    1 => CrashMode::KeepAll,
                    _ => CrashMode::RandomPrefix,
                };
                take(rig, Step::Crash(mode));
            }
            _ => {}
        }
        count += 1;
        if count % 16 == 0 {
            rig.exchange();
        }
    }
    take(rig, Step::Read);
    rig.exchange();
    // All that is late comes.
    rig.pass(200_000_000);
    rig.exchange();
}
