//! Who gets in, with passwords and with SCRAM.

use super::super::scram::{METHOD, ScramClient};
use super::*;

fn access(dir: &tempfile::TempDir) -> FileAccess {
    FileAccess::open(FileSettings { users: Some(users_file(dir)), ..FileSettings::default() }).unwrap()
}

#[test]
fn passwords() {
    let dir = tempfile::tempdir().unwrap();
    let access = access(&dir);
    // Twice: a password that was right is remembered, a wrong one must not profit.
    for _ in 0..2 {
        for (user, password, name) in [
            (Some("alice"), Some("wonderland"), Ok(Some("alice"))),
            (Some("bob"), Some("builder"), Ok(Some("bob"))),
            (Some("alice"), Some("builder"), Err(Denied::BadUserNameOrPassword)),
            (Some("alice"), Some(""), Err(Denied::BadUserNameOrPassword)),
            (Some("Alice"), Some("wonderland"), Err(Denied::BadUserNameOrPassword)),
            (Some("mallory"), Some("wonderland"), Err(Denied::BadUserNameOrPassword)),
            (Some(""), Some(""), Err(Denied::BadUserNameOrPassword)),
            (Some("%unknown"), Some(""), Err(Denied::BadUserNameOrPassword)),
            (Some("alice"), None, Err(Denied::BadUserNameOrPassword)),
            (None, Some("wonderland"), Err(Denied::BadUserNameOrPassword)),
            (None, None, Err(Denied::NotAuthorized)),
        ] {
            let found = access.authenticate(&attempt(user, password));
            assert_eq!(found.as_ref().map(Identity::name).map_err(|e| *e), name, "{user:?} {password:?}");
        }
    }
}

#[test]
fn anonymous_only_without_any_name_and_where_the_listener_lets_it() {
    let dir = tempfile::tempdir().unwrap();
    let access = access(&dir);
    let open = |user, password| Attempt { allow_anonymous: true, ..attempt(user, password) };
    assert_eq!(access.authenticate(&open(None, None)), Ok(Identity::anonymous()));
    assert_eq!(access.authenticate(&open(Some("alice"), None)), Err(Denied::BadUserNameOrPassword));
    assert_eq!(access.authenticate(&open(Some("mallory"), Some("x"))), Err(Denied::BadUserNameOrPassword));
    assert_eq!(access.authenticate(&open(None, Some("x"))), Err(Denied::BadUserNameOrPassword));
}

#[test]
fn a_certificate_is_the_user() {
    let dir = tempfile::tempdir().unwrap();
    let access = access(&dir);
    let with = |certificate| Attempt {
        certificate: Some(certificate),
        ..attempt(Some("alice"), Some("wonderland"))
    };
    assert_eq!(access.authenticate(&with("dev7")).unwrap().name(), Some("dev7"));
    assert_eq!(access.authenticate(&with("")), Err(Denied::NotAuthorized));
}

#[test]
fn without_a_users_file_nobody_has_a_password() {
    let access = FileAccess::open(FileSettings::default()).unwrap();
    assert_eq!(access.authenticate(&attempt(Some("a"), Some("b"))), Err(Denied::BadUserNameOrPassword));
}

#[test]
fn without_an_acl_file_only_the_servers_topics_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let access = access(&dir);
    let alice = Identity::user("alice");
    assert!(access.may_publish(&alice, "c", "a", false) && access.may_receive(&alice, "c", "a"));
    assert!(access.may_subscribe(&alice, "c", "#").is_yes());
    assert!(!access.may_publish(&alice, "c", "$SYS/a", false));
}

/// A whole login; the name, or why not.
fn scram(access: &FileAccess, user: &str, password: &str) -> Result<String, Denied> {
    let mut server = access.begin_exchange(METHOD, &attempt(None, None))?;
    let mut client = ScramClient::new(user, password, scram::nonce().unwrap());
    let challenge = match server.step(Some(&client.first())) {
        Step::Continue(data) => data,
        step => panic!("{step:?}: the first answer must not tell who is known"),
    };
    let proof = client.respond(&challenge).unwrap();
    match server.step(Some(&proof)) {
        Step::Done(identity, Some(last)) => {
            client.verify(&last).unwrap();
            let plain = access.authenticate(&attempt(Some(user), Some(password)));
            assert_eq!(plain, Ok(identity.clone()), "the same user either way");
            Ok(identity.name().unwrap().to_owned())
        }
        Step::Denied(why) => Err(why),
        step => panic!("{step:?}"),
    }
}

#[test]
fn scram_and_passwords_know_the_same_users() {
    let dir = tempfile::tempdir().unwrap();
    let access = access(&dir);
    users::add(&dir.path().join("users"), "a=b,c", b"p", 5000).unwrap();
    access.reload().unwrap();
    assert_eq!(scram(&access, "alice", "wonderland").as_deref(), Ok("alice"));
    assert_eq!(scram(&access, "a=b,c", "p").as_deref(), Ok("a=b,c"));
    assert_eq!(scram(&access, "alice", "builder"), Err(Denied::BadUserNameOrPassword));
    assert_eq!(scram(&access, "mallory", "wonderland"), Err(Denied::BadUserNameOrPassword));
    assert_eq!(access.begin_exchange("SCRAM-SHA-1", &attempt(None, None)).err(), Some(Denied::BadMethod));
}

#[test]
fn unknown_users_have_the_same_salt_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let challenge = |access: &FileAccess, user| {
        let mut server = access.begin_exchange(METHOD, &attempt(None, None)).unwrap();
        let Step::Continue(data) = server.step(Some(&ScramClient::new(user, "", "x".into()).first())) else {
            panic!("denied");
        };
        // Without the nonce, which is new each time.
        String::from_utf8(data).unwrap().split_once(",s=").unwrap().1.to_owned()
    };
    let (one, two) = (
        access(&dir),
        FileAccess::open(FileSettings { users: Some(dir.path().join("users")), ..FileSettings::default() })
            .unwrap(),
    );
    for user in ["alice", "mallory"] {
        // (`access` changed both passwords before `two` was opened.)
        assert_eq!(challenge(&one, user), challenge(&one, user));
        assert_eq!(challenge(&one, user), challenge(&two, user), "{user}");
    }
    let form = |text: &str| (text.len(), text.split_once(",i=").unwrap().1.to_owned());
    assert_ne!(challenge(&one, "mallory"), challenge(&one, "trudy"));
    assert_eq!(form(&challenge(&one, "mallory")), form(&challenge(&one, "alice")));
}

#[test]
fn a_wrong_password_costs_the_same_whether_the_user_exists_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    users::add(&path, "alice", b"wonderland", 200_000).unwrap();
    let access = FileAccess::open(FileSettings { users: Some(path), ..FileSettings::default() }).unwrap();
    // The least of some, for the machine may be busy: a known user takes some 50 ms, and a short cut next to nothing.
    let least = |user: &str| {
        let once = || {
            let start = std::time::Instant::now();
            assert!(access.authenticate(&attempt(Some(user), Some("x"))).is_err());
            start.elapsed()
        };
        (0..3).map(|_| once()).min().unwrap()
    };
    let (known, unknown) = (least("alice"), least("mallory"));
    assert!(unknown * 3 > known && known * 3 > unknown, "known {known:?}, unknown {unknown:?}");
}
