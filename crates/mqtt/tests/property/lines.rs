//! Any bytes at the doors of the line dialect: no panic, bounded memory, and what neighbours do goes on.

use postroad_journal::storage::SimStorage;
use postroad_mqtt::lines::Role;

use super::broker::{Step, run};
use super::rig::Rig;

/// One byte of mode, then steps as of [`super::broker`].
pub(crate) fn check(data: &[u8]) {
    let [mode, steps @ ..] = data else { return };
    let mut rig = Rig::open(SimStorage::new(1), mode & 4 != 0).expect("an empty disk");
    let mut publisher = rig.stranger(Some(Role::Publishers));
    let mut consumers = [rig.stranger(Some(Role::Consumers)), rig.stranger(Some(Role::Consumers))];
    if mode & 1 != 0 {
        consumers[0].send(&mut rig, b"log one\r\n{\"type\":\"SUB\",\"topic\":\"s\"}\r\n");
        consumers[0].read(&mut rig);
    }
    run(&mut rig, steps, |rig, step| match step {
        Step::Bytes(0, bytes) => publisher.send(rig, bytes),
        Step::Bytes(number, bytes) => consumers[usize::from(number - 1)].send(rig, bytes),
        Step::Read => {
            for stranger in consumers.iter_mut().chain([&mut publisher]) {
                let bytes = stranger.read(rig);
                let text = std::str::from_utf8(&bytes).expect("the dialect is text");
                assert!(text.is_empty() || text.ends_with("\r\n"), "{text:?} is cut");
            }
        }
        Step::Again(which) => match which % 3 {
            0 => publisher.again(rig),
            number => consumers[usize::from(number - 1)].again(rig),
        },
        Step::Crash(mode) => {
            rig.crash(mode);
            for stranger in consumers.iter_mut().chain([&mut publisher]) {
                stranger.dial(rig);
            }
        }
    });
}
