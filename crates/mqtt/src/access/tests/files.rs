//! The files: made, changed, cut and read again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::super::users::{Change, Users};
use super::*;

fn open(users: Option<&Path>, acl: Option<&Path>) -> Result<FileAccess, AccessError> {
    FileAccess::open(FileSettings {
        users: users.map(Into::into),
        acl: acl.map(Into::into),
        ..FileSettings::default()
    })
}

#[test]
fn users_are_added_changed_removed_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    assert_eq!(users::add(&path, "bob", b"1", 4096).unwrap(), Change::Added);
    fs::write(&path, format!("# kept\n\n{}", fs::read_to_string(&path).unwrap())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    // What a killed process left.
    fs::write(dir.path().join("users.new"), "half a li").unwrap();
    assert_eq!(users::add(&path, "alice", b"2", 4096).unwrap(), Change::Added);
    assert_eq!(users::add(&path, "bob", b"3", 4096).unwrap(), Change::Replaced);
    assert_eq!(users::list(&path).unwrap(), ["alice", "bob"]);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# kept\n\n%unknown:"), "{text}");
    assert_eq!(text.matches("%unknown").count(), 1);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let access = open(Some(&path), None).unwrap();
    assert!(access.authenticate(&attempt(Some("bob"), Some("3"))).is_ok());
    assert!(access.authenticate(&attempt(Some("bob"), Some("1"))).is_err());

    assert!(!users::remove(&path, "carol").unwrap());
    assert!(!users::remove(&path, "%unknown").unwrap());
    assert!(users::remove(&path, "bob").unwrap());
    assert_eq!(users::list(&path).unwrap(), ["alice"]);
    assert!(fs::read_to_string(&path).unwrap().starts_with("# kept\n\n%unknown:"));
    assert!(matches!(users::remove(&dir.path().join("none"), "a"), Err(AccessError::Io { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");
}

#[test]
fn a_link_is_followed_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    users::add(&real, "a", b"1", 4096).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    users::add(&link, "b", b"1", 4096).unwrap();
    assert_eq!(users::list(&real).unwrap(), ["a", "b"]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn changes_at_the_same_time_are_all_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let path = &path;
            scope.spawn(move || users::add(path, &format!("u{n}"), b"1", 4096).unwrap());
        }
    });
    assert_eq!(users::list(&path).unwrap().len(), 8);
}

#[test]
fn what_cannot_be_read_again_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    for name in ["", "a:b", "a\nb", "a\0", " a", "a ", "#a", "%unknown", &"a".repeat(256)] {
        assert!(matches!(users::add(&path, name, b"1", 4096), Err(AccessError::Unusable(_))), "{name:?}");
    }
    assert!(users::add(&path, "a", b"", 4096).is_err());
    assert!(users::add(&path, "a", b"1", 4095).is_err());
    assert!(users::add(&path, "a", b"1", 1_000_001).is_err());
    assert!(!path.exists());
    // A file that is not understood is not made worse.
    fs::write(&path, "nonsense\n").unwrap();
    assert!(users::add(&path, "a", b"1", 4096).is_err());
    assert!(users::remove(&path, "a").is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "nonsense\n");
}

#[test]
fn a_cut_users_file_is_an_error_but_between_lines_cve_2018_12550() {
    let dir = tempfile::tempdir().unwrap();
    let path = users_file(&dir);
    let text = fs::read_to_string(&path).unwrap();
    for cut in 0..text.len() {
        let parsed = Users::parse(&text[..cut], [0; 32]);
        assert_eq!(parsed.is_ok(), cut == 0 || text[..cut].ends_with('\n'), "{:?}", &text[..cut]);
        // With a line end, too, a hash that is not whole is none.
        if !text[..cut].ends_with('\n') && cut != 0 {
            assert!(
                Users::parse(&format!("{}\n", &text[..cut]), [0; 32]).is_err()
                    || text[cut..].starts_with('\n')
            );
        }
    }
}

#[test]
fn malformed_users_are_errors_with_their_line() {
    let good = "$scram-sha-256$4096$W22ZaJ0SNY7soEsUEjb6gQ==$\
                AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    assert!(Users::parse(&format!("a:{good}\nb:{good}\n"), [0; 32]).is_ok());
    for (line, hint) in [
        ("alice".to_owned(), "not NAME:HASH"),
        ("alice:".to_owned(), "not $scram-sha-256$"),
        ("alice:secret".to_owned(), "not $scram-sha-256$"),
        (format!(":{good}"), "must not be empty"),
        (format!("a:{good}"), "there twice"),
        (format!("%x:{good}"), "must not begin"),
        ("%unknown:AAAA".to_owned(), "32 bytes in base64"),
        (format!("b:{good}$x"), "not $scram-sha-256$"),
        (format!("b:{}", good.replace("sha-256", "sha-1")), "of 'scram-sha-1'"),
        (format!("b:{}", good.replace("4096", "4095")), "iterations"),
        (format!("b:{}", good.replace("4096", "4294967296")), "iterations"),
        (format!("b:{}", good.replace("W22ZaJ0SNY7soEsUEjb6gQ==", "AAAA")), "salt"),
        (format!("b:{}", good.replacen("AAA=", "AA", 1)), "stored key"),
        (format!("b:{}", good.trim_end_matches('=')), "server key"),
    ] {
        let error = Users::parse(&format!("# x\na:{good}\n{line}\n"), [0; 32]).unwrap_err();
        assert_eq!(error.line, 3, "{line}: {error}");
        assert!(error.what.contains(hint), "{line}: {error}");
    }
}

#[test]
fn a_bad_file_at_the_start_is_no_access_at_all_cve_2018_12551() {
    let dir = tempfile::tempdir().unwrap();
    let (users, acl) = (users_file(&dir), dir.path().join("acl"));
    assert!(matches!(open(Some(&users), Some(&acl)), Err(AccessError::Io { .. })), "a missing file");
    fs::write(&acl, "all\n  allow everything\n").unwrap();
    let error = open(Some(&users), Some(&acl)).unwrap_err().to_string();
    assert!(error.contains("/acl:2: 'everything' is no action"), "{error}");
    fs::write(&acl, b"all\n  allow publish \xff\n").unwrap();
    let error = open(Some(&users), Some(&acl)).unwrap_err().to_string();
    assert!(error.contains("/acl:2: not UTF-8"), "{error}");
    fs::write(&users, "alice:secret\n").unwrap();
    assert!(matches!(open(Some(&users), None), Err(AccessError::Malformed { line: 1, .. })));
    assert!(matches!(open(Some(dir.path()), None), Err(AccessError::Io { .. })), "a directory");
}

#[test]
fn changes_are_read_again_and_bad_ones_leave_the_old_rules() {
    let dir = tempfile::tempdir().unwrap();
    let (users, acl) = (users_file(&dir), dir.path().join("acl"));
    fs::write(&acl, "all\n  allow publish a\n").unwrap();
    let access = open(Some(&users), Some(&acl)).unwrap();
    let alice = access.authenticate(&attempt(Some("alice"), Some("wonderland"))).unwrap();
    let bob = access.authenticate(&attempt(Some("bob"), Some("builder"))).unwrap();
    let may = |topic| access.may_publish(&alice, "c", topic, false);
    assert!(!access.reload().unwrap());
    assert_eq!(access.generation(), 0);

    // The same length, at nearly the same time.
    fs::write(&acl, "all\n  allow publish b\n").unwrap();
    assert!(access.reload().unwrap());
    assert!(may("b") && !may("a"));
    assert_eq!(access.generation(), 1);

    for bad in ["all\n  allow nonsense\n", "all\n  allow publish #\n  deny publish secr"] {
        fs::write(&acl, bad).unwrap();
        for _ in 0..2 {
            assert!(access.reload().is_err(), "as long as it is bad");
            assert!(may("b") && !may("a"));
        }
    }
    fs::remove_file(&acl).unwrap();
    assert!(matches!(access.reload(), Err(AccessError::Io { .. })));
    assert!(may("b") && !may("a"));
    assert_eq!(access.generation(), 1);

    // One bad file does not hold up the other: rights can be taken away.
    assert!(access.is_current(&alice) && access.is_current(&bob));
    users::remove(&users, "bob").unwrap();
    users::add(&users, "alice", b"other", 4096).unwrap();
    assert!(access.reload().is_err());
    assert_eq!(access.generation(), 2);
    assert!(!access.is_current(&bob), "removed");
    assert!(!access.is_current(&alice), "another password");
    assert!(access.is_current(&Identity::user("bob")), "has a certificate");
    assert!(access.is_current(&Identity::anonymous()));
    assert!(access.authenticate(&attempt(Some("bob"), Some("builder"))).is_err());
    assert!(
        access.authenticate(&attempt(Some("alice"), Some("wonderland"))).is_err(),
        "the old password is forgotten"
    );
    assert!(access.authenticate(&attempt(Some("alice"), Some("other"))).is_ok());

    // What was good and came back is good: nothing changed, and no error.
    fs::write(&acl, "all\n  allow publish b\n").unwrap();
    access.reload().unwrap();
    assert!(!access.reload().unwrap());
    assert!(may("b") && !may("a"));
}

#[test]
fn rights_taken_away_end_deliveries_cve_2018_12546_cve_2021_34434() {
    let dir = tempfile::tempdir().unwrap();
    let acl = dir.path().join("acl");
    fs::write(&acl, "user alice\n  allow subscribe a/#\n").unwrap();
    let access = open(None, Some(&acl)).unwrap();
    let alice = Identity::user("alice");
    assert!(access.may_subscribe(&alice, "c", "a/#").is_yes() && access.may_receive(&alice, "c", "a/b"));
    fs::write(&acl, "user alice\n  allow subscribe a/#\n  deny subscribe a/b\n").unwrap();
    assert!(access.reload().unwrap());
    assert_eq!(access.may_subscribe(&alice, "c", "a/#"), Permit::No(ReasonCode::NotAuthorized));
    assert!(!access.may_receive(&alice, "c", "a/b") && access.may_receive(&alice, "c", "a/c"));
}

#[test]
fn an_old_file_is_known_by_its_stamp() {
    let dir = tempfile::tempdir().unwrap();
    let acl = dir.path().join("acl");
    fs::write(&acl, "all\n  allow publish a\n").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(3200));
    let access = open(None, Some(&acl)).unwrap();
    assert!(!access.reload().unwrap());
    let may = |topic| access.may_publish(&Identity::anonymous(), "c", topic, false);
    // In place, then by rename: as editors do.
    fs::write(&acl, "all\n  allow publish b\n").unwrap();
    assert!(access.reload().unwrap() && may("b"));
    fs::write(dir.path().join("new"), "all\n  allow publish c\n").unwrap();
    fs::rename(dir.path().join("new"), &acl).unwrap();
    assert!(access.reload().unwrap() && may("c"));
}
