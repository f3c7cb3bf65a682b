//! Any text is an access file or an error, and what is wrong or unsaid allows nothing.

use postroad_mqtt::access::acl::Acl;
use postroad_mqtt::access::users::Users;
use postroad_mqtt::access::{Identity, UserLimits};

const CLIENTS: [&str; 4] = ["c1", "+", "$x", ""];

/// The first byte says which file it is.
pub(crate) fn check(data: &[u8]) {
    let [kind, text @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    if kind & 1 == 0 { acl(text) } else { users(text) }
}

/// Whether anything at all is allowed, of what the text itself names.
fn allows(acl: &Acl, text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().chain(["a", "a/b", "#", "$SYS/x"]).take(40).collect();
    let names = words.iter().filter(|word| word.len() < 20).take(8);
    let who: Vec<Identity> = names.map(|name| Identity::user(*name)).chain([Identity::anonymous()]).collect();
    who.iter().any(|who| {
        CLIENTS.iter().any(|client| {
            words.iter().any(|topic| {
                acl.may_publish(who, client, topic)
                    || acl.may_subscribe(who, client, topic)
                    || acl.may_receive(who, client, topic)
            })
        })
    })
}

fn acl(text: &str) {
    let Ok(acl) = Acl::parse(text) else { return };
    let allowed = allows(&acl, text);
    let rules = || text.lines().map(str::trim).filter(|line| line.starts_with("allow"));
    assert!(!allowed || rules().next().is_some(), "allowed without a rule");
    // One wrong line more, anywhere, and there are no rules at all.
    assert!(Acl::parse(&format!("{text}permit all #\n")).is_err());
    assert!(Acl::parse(&format!("permit all #\n{text}")).is_err());
    // A file that was cut inside its last line is none.
    let cut = text.strip_suffix('\n').unwrap_or_default();
    assert!(cut.is_empty() || cut.ends_with('\n') || Acl::parse(cut).is_err());
    // `deny` wins, wherever it is.
    for denied in [
        format!("{text}all\n  deny readwrite #\n  deny readwrite $SYS/#\n"),
        format!("all\n  deny readwrite #\n  deny readwrite $SYS/#\n{text}"),
    ] {
        let acl = Acl::parse(&denied).expect("good rules below good rules");
        let plain: String = text.replace('$', "_");
        assert!(!allows(&acl, &plain), "allowed beside a deny");
    }
    let nobody = Acl::parse("").expect("no rules");
    assert!(!allows(&nobody, text));
    assert_eq!(nobody.limits(&Identity::anonymous()), UserLimits::default());
}

fn users(text: &str) {
    let Ok(users) = Users::parse(text, [7; 32]) else { return };
    let names: Vec<&str> = users.names().collect();
    assert!(names.is_sorted_by(|a, b| a < b), "a name is there once");
    for name in &names {
        assert!(text.lines().any(|line| line.trim_start().starts_with(&format!("{name}:"))), "{name} is new");
        let twice = format!(
            "{text}{}\n",
            text.lines().find(|line| line.trim().starts_with(&format!("{name}:"))).unwrap_or("")
        );
        assert!(Users::parse(&twice, [7; 32]).is_err(), "{name} twice");
    }
    assert!(Users::parse(&format!("{text}no hash\n"), [7; 32]).is_err());
    let cut = text.strip_suffix('\n').unwrap_or_default();
    assert!(cut.is_empty() || cut.ends_with('\n') || Users::parse(cut, [7; 32]).is_err());
}
