use std::{io, path::Path};

use super::*;
use crate::storage::read_range;

fn dir() -> &'static Path {
    Path::new("/data/log")
}

fn disk(seed: u64) -> SimStorage {
    let storage = SimStorage::new(seed);
    storage.create_dir_all(dir()).unwrap();
    storage
}

fn create(storage: &SimStorage, name: &str) -> Arc<dyn StorageFile> {
    storage.open(&dir().join(name), OpenMode::Create).unwrap()
}

fn names(storage: &SimStorage) -> Vec<String> {
    storage.list(dir()).unwrap().into_iter().map(|e| e.name).collect()
}

/// A file `a` with durable name and contents.
fn with_durable(seed: u64, bytes: &[u8]) -> (SimStorage, Arc<dyn StorageFile>) {
    let storage = disk(seed);
    let file = create(&storage, "a");
    file.write_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    storage.sync_dir(dir()).unwrap();
    (storage, file)
}

fn content(storage: &SimStorage) -> Vec<u8> {
    storage.read_file(&dir().join("a")).unwrap()
}

#[test]
fn reads_what_was_written() {
    let (storage, file) = with_durable(1, b"hello");
    file.write_at(b"J", 0).unwrap();
    file.write_at(b"!", 7).unwrap();
    assert_eq!(read_range(&*file, 0, 100).unwrap(), b"Jello\0\0!");
    assert_eq!(read_range(&*file, 6, 1).unwrap(), b"\0");
    assert_eq!(read_range(&*file, 99, 5).unwrap(), b"");
    file.set_len(2).unwrap();
    assert_eq!((file.len().unwrap(), file.is_empty().unwrap()), (2, false));
    let reader = storage.open(&dir().join("a"), OpenMode::Read).unwrap();
    assert_eq!(read_range(&*reader, 0, 9).unwrap(), b"Je");
    assert!(reader.write_at(b"x", 0).is_err());
}

#[test]
fn names_behave_as_on_a_real_disk() {
    let storage = disk(1);
    let path = |name: &str| dir().join(name);
    assert_eq!(storage.list(Path::new("/nope")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(storage.open(&path("a"), OpenMode::Write).unwrap_err().kind(), io::ErrorKind::NotFound);
    create(&storage, "b").write_at(b"bb", 0).unwrap();
    create(&storage, "a");
    assert_eq!(storage.open(&path("a"), OpenMode::Create).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(names(&storage), ["a", "b"]);
    storage.rename(&path("b"), &path("a")).unwrap();
    assert_eq!(storage.list(dir()).unwrap(), [DirEntry { name: "a".into(), is_dir: false, len: 2 }]);
    assert_eq!(storage.remove_dir(dir()).unwrap_err().kind(), io::ErrorKind::DirectoryNotEmpty);
    let held = storage.open(&path("a"), OpenMode::Read).unwrap();
    storage.remove(&path("a")).unwrap();
    assert_eq!(held.len().unwrap(), 2, "an open file outlives its name");
    storage.remove_dir(dir()).unwrap();
    assert_eq!(storage.list(Path::new("/data")).unwrap(), []);
}

#[test]
fn power_loss_drops_exactly_what_was_not_synced() {
    let (storage, file) = with_durable(1, b"old");
    file.write_at(b"newer", 0).unwrap();
    create(&storage, "b").sync_data().unwrap();
    storage.fork(1).crash(CrashMode::KeepAll);
    let power = storage.fork(1);
    power.crash(CrashMode::DropUnsynced);
    assert_eq!(content(&power), b"old");
    assert_eq!(names(&power), ["a"], "a synced file with an un-synced name is gone");

    file.sync_data().unwrap();
    storage.sync_dir(dir()).unwrap();
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(content(&storage), b"newer");
    assert_eq!(names(&storage), ["a", "b"]);
}

#[test]
fn a_killed_process_loses_nothing_but_makes_nothing_durable() {
    let (storage, file) = with_durable(1, b"old");
    file.write_at(b"new", 0).unwrap();
    storage.crash(CrashMode::KeepAll);
    assert_eq!(content(&storage), b"new");
    assert!(is_simulated_crash(&file.len().unwrap_err()), "handles of the dead process are dead");
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(content(&storage), b"old");
}

#[test]
fn syncfs_makes_everything_durable_or_says_that_it_cannot() {
    let storage = disk(1);
    create(&storage, "a").write_at(b"x", 0).unwrap();
    assert!(storage.sync_filesystem(Path::new("/data")).unwrap());
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(content(&storage), b"x");
    storage.set_syncfs(false);
    storage.open(&dir().join("a"), OpenMode::Write).unwrap().write_at(b"y", 0).unwrap();
    assert!(!storage.sync_filesystem(Path::new("/data")).unwrap());
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(content(&storage), b"x");
}

#[test]
fn a_lost_rename_or_removal_brings_the_old_name_back() {
    let (storage, _file) = with_durable(1, b"x");
    let lost = storage.fork(2);
    lost.rename(&dir().join("a"), &dir().join("b")).unwrap();
    lost.crash(CrashMode::DropUnsynced);
    assert_eq!(names(&lost), ["a"]);
    let removed = storage.fork(2);
    removed.remove(&dir().join("a")).unwrap();
    removed.crash(CrashMode::DropUnsynced);
    assert_eq!(names(&removed), ["a"]);
    storage.rename(&dir().join("a"), &dir().join("b")).unwrap();
    storage.sync_dir(dir()).unwrap();
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(names(&storage), ["b"]);
}

#[test]
fn a_rename_across_directories_never_loses_the_file() {
    let (storage, _file) = with_durable(1, b"x");
    let other = Path::new("/data/other");
    storage.create_dir_all(other).unwrap();
    storage.rename(&dir().join("a"), &other.join("a")).unwrap();
    for seed in 0..200 {
        for (mode, sync) in [
            (CrashMode::RandomSectors, None),
            (CrashMode::RandomPrefix, None),
            (CrashMode::DropUnsynced, Some(dir())),
        ] {
            let disk = storage.fork(seed);
            if let Some(dir) = sync {
                disk.sync_dir(dir).unwrap();
            }
            disk.crash(mode);
            let places = disk.list(dir()).unwrap().len() + disk.list(other).unwrap().len();
            assert!(places >= 1, "seed {seed}");
        }
    }
}

#[test]
fn directories_are_durable_once_made_and_a_half_made_one_is_completed() {
    let storage = SimStorage::new(1);
    // Call 1 makes /data, call 2 syncs the root: the process is killed between the two.
    storage.crash_at(2);
    assert!(storage.create_dir_all(dir()).is_err());
    storage.crash(CrashMode::KeepAll);
    storage.create_dir_all(dir()).unwrap();
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(storage.list(dir()).unwrap(), []);
}

#[test]
fn sectors_survive_one_by_one() {
    let (storage, file) = with_durable(1, &[b'o'; 1024]);
    file.write_at(&[b'n'; 2000], 0).unwrap();
    let (mut lengths, mut mixes) = (HashSet::new(), HashSet::new());
    for seed in 0..400 {
        let disk = storage.fork(seed);
        disk.crash(CrashMode::RandomSectors);
        let bytes = content(&disk);
        lengths.insert(bytes.len());
        for (i, sector) in bytes.chunks(512).enumerate() {
            let allowed = if i < 2 { b"on" } else { b"\0n" };
            assert!(sector.iter().all(|b| *b == sector[0] && allowed.contains(b)), "seed {seed} sector {i}");
        }
        mixes.insert(bytes.chunks(512).map(|s| s[0]).collect::<Vec<_>>());
        disk.crash(CrashMode::DropUnsynced);
        assert_eq!(content(&disk), bytes, "what came back is durable");
    }
    assert!(lengths.contains(&1024) && lengths.contains(&2000) && lengths.len() > 10);
    assert!(mixes.len() > 12, "{}", mixes.len());
}

#[test]
fn a_lost_truncation_brings_the_old_bytes_back() {
    let (storage, file) = with_durable(1, &[b'o'; 1024]);
    file.set_len(100).unwrap();
    let mut lengths = HashSet::new();
    for seed in 0..100 {
        let disk = storage.fork(seed);
        disk.crash(CrashMode::RandomSectors);
        assert!(content(&disk).iter().all(|b| *b == b'o'));
        lengths.insert(content(&disk).len());
    }
    assert!(lengths.contains(&100) && lengths.contains(&1024));
}

#[test]
fn a_prefix_of_the_changes_survives() {
    let (storage, file) = with_durable(1, b"");
    for (i, word) in [b"aaaa", b"bbbb", b"cccc"].iter().enumerate() {
        file.write_at(&word[..], i as u64 * 4).unwrap();
    }
    create(&storage, "b");
    let mut lengths = HashSet::new();
    for seed in 0..300 {
        let disk = storage.fork(seed);
        disk.crash(CrashMode::RandomPrefix);
        let bytes = content(&disk);
        assert!(b"aaaabbbbcccc".starts_with(&bytes[..]));
        assert!(bytes.len() == 12 || names(&disk) == ["a"], "the later name came without the earlier bytes");
        lengths.insert(bytes.len());
    }
    assert_eq!(lengths.len(), 13, "every torn length turns up");
}

#[test]
fn the_same_seed_gives_the_same_crash() {
    let outcome = |seed| {
        let (storage, file) = with_durable(seed, &[1; 3000]);
        file.write_at(&[2; 9000], 10).unwrap();
        storage.crash(CrashMode::RandomSectors);
        content(&storage)
    };
    assert_eq!(outcome(7), outcome(7));
    assert!((0..8).any(|seed| outcome(seed) != outcome(7)));
}

#[test]
fn the_k_th_call_fails_and_only_that() {
    let (storage, file) = with_durable(1, b"");
    let next = |n: u64| storage.calls() + n;
    storage.fail_at(next(2), FaultKind::Eio);
    file.write_at(b"a", 0).unwrap();
    assert_eq!(file.write_at(b"b", 1).unwrap_err().raw_os_error(), Some(5));
    file.write_at(b"c", 1).unwrap();
    assert_eq!(content(&storage), b"ac");

    storage.fail_at(next(1), FaultKind::Enospc);
    assert_eq!(file.set_len(9).unwrap_err().kind(), io::ErrorKind::StorageFull);
    storage.fail_at(next(1), FaultKind::Eio);
    assert!(storage.list(dir()).is_err());

    let before = storage.calls();
    storage.fail_at(next(1), FaultKind::EintrOnce);
    file.write_at(b"d", 2).unwrap();
    storage.fail_at(next(1), FaultKind::EintrOnce);
    file.sync_data().unwrap();
    assert_eq!(storage.calls() - before, 4, "each was tried again");

    let before = storage.calls();
    storage.fail_at(next(1), FaultKind::ShortWrite);
    file.write_at(&[b'e'; 4000], 3).unwrap();
    assert_eq!((storage.calls() - before, file.len().unwrap()), (2, 4003));

    storage.fail_at(next(1), FaultKind::ShortWriteThenEio);
    assert!(file.write_at(&[b'f'; 4000], 4003).is_err());
    assert!((4003..=8003).contains(&file.len().unwrap()));
}

#[test]
fn a_failed_sync_loses_the_bytes_although_they_stay_readable() {
    let (storage, file) = with_durable(1, b"old");
    file.write_at(b"new", 0).unwrap();
    storage.fail_at(storage.calls() + 1, FaultKind::Eio);
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    assert_eq!(content(&storage), b"new");
    file.write_at(b"+", 3).unwrap();
    file.sync_data().unwrap();
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(content(&storage), b"old+", "later writes are saved, the lost ones are not");
}

#[test]
fn a_crash_stops_every_call_until_it_is_over() {
    let (storage, file) = with_durable(1, b"old");
    storage.crash_at(storage.calls() + 2);
    file.write_at(b"new", 0).unwrap();
    assert!(is_simulated_crash(&file.sync_data().unwrap_err()));
    assert!(storage.has_crashed());
    assert!(is_simulated_crash(&file.write_at(b"xxx", 0).unwrap_err()));
    assert!(is_simulated_crash(&storage.list(dir()).unwrap_err()));
    assert!(is_simulated_crash(&storage.rename(&dir().join("a"), &dir().join("b")).unwrap_err()));
    assert_eq!(content(&storage), b"new");
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(content(&storage), b"old");
    assert_eq!(names(&storage), ["a"]);
}

#[test]
fn a_change_in_flight_may_have_reached_the_cache() {
    let (storage, file) = with_durable(1, b"old");
    storage.crash_at(storage.calls() + 1);
    assert!(is_simulated_crash(&file.write_at(b"new", 0).unwrap_err()));
    storage.crash(CrashMode::KeepAll);
    assert_eq!(content(&storage), b"new");
}

#[test]
fn the_quota_holds_and_free_bytes_agrees() {
    let (storage, file) = with_durable(1, &[0; 100]);
    assert!(storage.free_bytes(dir()).unwrap() > 1 << 30);
    storage.set_capacity(Some(600));
    assert_eq!(storage.free_bytes(dir()).unwrap(), 500);
    file.write_at(&[1; 100], 0).unwrap();
    // Space runs out by the sector.
    let error = file.write_at(&[2; 700], 100).unwrap_err();
    assert_eq!((error.kind(), file.len().unwrap()), (io::ErrorKind::StorageFull, 512));
    assert_eq!(file.set_len(601).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(storage.free_bytes(dir()).unwrap(), 88);
    file.set_len(20).unwrap();
    file.write_at(&[2; 80], 20).unwrap();
    storage.remove(&dir().join("a")).unwrap();
    assert_eq!(storage.free_bytes(dir()).unwrap(), 600);
}

#[test]
fn a_lock_is_exclusive_and_ends_with_its_guard_or_the_process() {
    let storage = disk(1);
    let guard = storage.lock(dir()).unwrap();
    assert_eq!(storage.lock(dir()).err().unwrap().kind(), io::ErrorKind::WouldBlock);
    drop(guard);
    let old = storage.lock(dir()).unwrap();
    storage.crash(CrashMode::KeepAll);
    let _new = storage.lock(dir()).unwrap();
    drop(old);
    assert!(storage.lock(dir()).is_err(), "a guard of the dead process must not free the new lock");
    assert_eq!(names(&storage), [".lock"]);
}

#[test]
fn a_lying_disk_says_yes_and_does_nothing() {
    let (storage, file) = with_durable(1, b"old");
    storage.ignore(Call::SyncData);
    file.write_at(b"new", 0).unwrap();
    file.sync_data().unwrap();
    storage.ignore(Call::Remove);
    storage.remove(&dir().join("a")).unwrap();
    assert_eq!(names(&storage), ["a"]);
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(content(&storage), b"old");
}

#[test]
fn the_trace_names_every_call() {
    let (storage, file) = with_durable(1, b"x");
    let before = storage.trace().len();
    file.write_at(b"y", 0).unwrap();
    file.sync_all().unwrap();
    storage.sync_dir(dir()).unwrap();
    let calls: Vec<_> = storage.trace().split_off(before);
    let a = dir().join("a");
    assert_eq!(calls, [(Call::Write, a.clone()), (Call::SyncAll, a), (Call::SyncDir, dir().to_owned())]);
}

#[test]
fn damage_by_other_hands_is_durable() {
    let storage = disk(1);
    storage.put_file(&dir().join("a"), b"damaged").unwrap();
    storage.crash(CrashMode::DropUnsynced);
    assert_eq!(storage.read_durable(&dir().join("a")).unwrap(), b"damaged");
    storage.put_file(&dir().join("a"), b"d").unwrap();
    assert_eq!(content(&storage), b"d");
}
