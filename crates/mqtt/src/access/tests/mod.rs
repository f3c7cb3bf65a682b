//! Tests of access control as a broker sees it.

mod acl;
mod files;
mod login;
mod patterns;

use super::*;

/// Two users, `alice` with `wonderland` and `bob` with `builder`, made by the functions of the command line.
fn users_file(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let path = dir.path().join("users");
    for (name, password) in [("alice", "wonderland"), ("bob", "builder")] {
        users::add(&path, name, password.as_bytes(), 4096).unwrap();
    }
    path
}

fn attempt<'a>(user_name: Option<&'a str>, password: Option<&'a str>) -> Attempt<'a> {
    Attempt {
        client_id: "c1",
        user_name,
        password: password.map(str::as_bytes),
        certificate: None,
        address: None,
        allow_anonymous: false,
    }
}

#[test]
fn prefixes_of_shared_subscriptions_are_left_out_once() {
    for (filter, plain) in [
        ("a/b", Some("a/b")),
        ("$share/g/a/#", Some("a/#")),
        ("$share/g//a", Some("/a")),
        ("$queue/a/+", Some("a/+")),
        ("$share/g/$SYS/#", Some("$SYS/#")),
        ("$shared/g/a", Some("$shared/g/a")),
        ("$SYS/#", Some("$SYS/#")),
        ("$share", None),
        ("$share/g", None),
        ("$share/g/", None),
        ("$queue", None),
        ("$queue/", None),
        ("$queue/$share/g/a", None),
        ("$share/g/$queue/a", None),
        ("$share/g/$share/h/a", None),
        ("$share/g/$share", None),
    ] {
        assert_eq!(plain_filter(filter), plain, "{filter}");
    }
}

#[test]
fn open_access_keeps_the_servers_topics() {
    let nobody = Identity::anonymous();
    let anonymous = Attempt { allow_anonymous: true, ..attempt(Some("root"), Some("x")) };
    assert_eq!(OpenAccess.authenticate(&anonymous), Ok(Identity::anonymous()), "an unproven name is no name");
    assert_eq!(OpenAccess.authenticate(&attempt(None, None)), Err(Denied::NotAuthorized));
    let certificate = Attempt { certificate: Some("dev"), ..attempt(None, None) };
    assert_eq!(OpenAccess.authenticate(&certificate).unwrap().name(), Some("dev"));
    assert!(OpenAccess.may_publish(&nobody, "c", "a/$b", true));
    assert!(!OpenAccess.may_publish(&nobody, "c", "$SYS/a", false));
    assert!(OpenAccess.may_subscribe(&nobody, "c", "$SYS/#").is_yes());
    assert_eq!(OpenAccess.begin_exchange(scram::METHOD, &anonymous).err(), Some(Denied::BadMethod));
}
