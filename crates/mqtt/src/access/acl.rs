//! The ACL file: who may use which topics.
//!
//! ```text
//! # Rules for everybody, anonymous clients too.
//! all
//!   allow receive     news/#
//!
//! user alice
//!   allow readwrite   home/%u/#
//!   allow publish     devices/%c/state
//!   deny  publish     home/%u/locked/#
//!   limit connections 10
//!
//! anonymous
//!   allow subscribe   public/+/temperature
//! ```
//!
//! A line is a block (`all`, `user NAME`, `anonymous`), a rule of the block above it, empty, or a comment: a `#` in
//! front, for elsewhere it is the wildcard. A block may come more than once. The last line ends with a line end too; a
//! file without it may have been cut.
//!
//! - **Rules** are `allow` or `deny`, then `publish`, `subscribe`, `receive` or `readwrite`, then a topic filter to the
//!   end of the line. `subscribe` has `receive` in it, `readwrite` has all three.
//! - **Order does not matter.** Something is allowed if an `allow` of the user's block or of `all` has it, and no `deny` of
//!   either has. What no rule names is denied.
//! - **Subscriptions**: one `allow` filter must cover all that the subscription's filter matches, and no `deny` filter
//!   may have a topic in common with it. To let a client subscribe to `#` and yet keep some topics from it, use `deny
//!   receive`, which is looked at for each message. `$share/GROUP/` and `$queue/` in front are left out.
//! - **`%u`** stands for the user's name and **`%c`** for the client id, inside of a level; `%%` is a percent sign. A
//!   value that is empty, begins with `$`, or has `+`, `#`, `/` or U+0000 in it, matches nothing in an `allow`; in a
//!   `deny`, it matches everything from that level on.
//! - **Topics that begin with `$`** are not matched by filters that begin with a wildcard, `allow` or `deny`.
//! - **`limit connections N`** and **`limit subscriptions N`**: the smaller of the user's block and `all` counts.

use std::collections::HashMap;

use super::error::LineError;
use super::pattern::{Pattern, Values};
use super::{Identity, UserLimits};
use crate::filters::Filters;

const PUBLISH: u8 = 1;
const RECEIVE: u8 = 2;
const SUBSCRIBE: u8 = 4;

/// The rules of an ACL file.
#[derive(Debug, Default)]
pub struct Acl {
    all: Block,
    anonymous: Block,
    users: HashMap<Box<str>, Block>,
}

#[derive(Debug, Default)]
struct Block {
    rules: Vec<Rule>,
    limits: UserLimits,
    // For topics, which are asked about at each message: rules without placeholders by their filter, and the others.
    by_filter: Filters<Says>,
    mixed: Vec<usize>,
}

/// What a rule says about its actions.
#[derive(Clone, Copy, Debug)]
struct Says {
    allow: bool,
    actions: u8,
}

#[derive(Debug)]
struct Rule {
    allow: bool,
    /// `PUBLISH`, `RECEIVE` and `SUBSCRIBE`, added.
    actions: u8,
    pattern: Pattern,
}

/// The block that the lines belong to.
enum At<'a> {
    Nowhere,
    All,
    Anonymous,
    User(&'a str),
}

/// The first word, and the rest without the space around it.
fn word(line: &str) -> (&str, &str) {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (word, rest.trim())
}

impl Acl {
    /// Reads the text of an ACL file.
    pub fn parse(text: &str) -> Result<Self, LineError> {
        let mut acl = Self::default();
        let mut at = At::Nowhere;
        for (line, text) in super::users::lines(text)? {
            acl.line(&mut at, text).map_err(|what| LineError { line, what })?;
        }
        Ok(acl)
    }

    fn line<'a>(&mut self, at: &mut At<'a>, text: &'a str) -> Result<(), String> {
        let (first, rest) = word(text);
        *at = match (first, rest) {
            ("all", "") => At::All,
            ("anonymous", "") => At::Anonymous,
            ("user", "") => return Err("the name is missing: write 'user NAME'".to_owned()),
            ("user", name) => At::User(name),
            ("allow" | "deny" | "limit", _) => {
                let block = match at {
                    At::All => &mut self.all,
                    At::Anonymous => &mut self.anonymous,
                    At::User(name) => self.users.entry((*name).into()).or_default(),
                    At::Nowhere => {
                        return Err(
                            "a rule for nobody: put 'all', 'anonymous' or 'user NAME' on a line above"
                                .to_owned(),
                        );
                    }
                };
                return block.line(first, rest);
            }
            _ => {
                return Err(format!(
                    "'{text}' means nothing here: write 'all', 'anonymous', 'user NAME', 'allow ACTION FILTER', 'deny \
                     ACTION FILTER', or 'limit connections N'"
                ));
            }
        };
        if let At::User(name) = at {
            // A block without rules is one too: it may have only been named.
            self.users.entry((*name).into()).or_default();
        }
        Ok(())
    }

    fn blocks(&self, who: &Identity) -> [Option<&Block>; 2] {
        let own = match who.name() {
            Some(name) => self.users.get(name),
            None => Some(&self.anonymous),
        };
        [own, Some(&self.all)]
    }

    fn allows(&self, who: &Identity, client_id: &str, action: u8, filter: &str) -> bool {
        let values = Values { user: who.name(), client_id };
        let mut allowed = false;
        for rule in self.blocks(who).into_iter().flatten().flat_map(|block| &block.rules) {
            if rule.actions & action == 0 {
                continue;
            }
            if rule.allow {
                allowed = allowed || rule.pattern.covers(filter, values);
            } else if rule.pattern.overlaps(filter, values) {
                return false;
            }
        }
        allowed
    }

    /// The same for a topic, without a look at every rule: covered, overlapped and matched are one for it.
    fn allows_topic(&self, who: &Identity, client_id: &str, action: u8, topic: &str) -> bool {
        let values = Values { user: who.name(), client_id };
        let (mut allowed, mut denied) = (false, false);
        let mut say = |allow: bool| if allow { allowed = true } else { denied = true };
        for block in self.blocks(who).into_iter().flatten() {
            block.by_filter.matches(topic, |says| {
                if says.actions & action != 0 {
                    say(says.allow);
                }
            });
            for rule in block.mixed.iter().filter_map(|at| block.rules.get(*at)) {
                if rule.actions & action != 0
                    && (if rule.allow {
                        rule.pattern.covers(topic, values)
                    } else {
                        rule.pattern.overlaps(topic, values)
                    })
                {
                    say(rule.allow);
                }
            }
        }
        allowed && !denied
    }

    /// Whether a message may be published to the topic.
    pub fn may_publish(&self, who: &Identity, client_id: &str, topic: &str) -> bool {
        self.allows_topic(who, client_id, PUBLISH, topic)
    }

    /// Whether everything that the filter matches may be subscribed to. Prefixes of shared subscriptions are left out.
    pub fn may_subscribe(&self, who: &Identity, client_id: &str, filter: &str) -> bool {
        super::plain_filter(filter).is_some_and(|filter| self.allows(who, client_id, SUBSCRIBE, filter))
    }

    /// Whether a message with this topic may be delivered.
    pub fn may_receive(&self, who: &Identity, client_id: &str, topic: &str) -> bool {
        self.allows_topic(who, client_id, RECEIVE, topic)
    }

    /// How much the user may have at once.
    pub fn limits(&self, who: &Identity) -> UserLimits {
        let least = |of: fn(&UserLimits) -> Option<u32>| {
            self.blocks(who).into_iter().flatten().filter_map(|block| of(&block.limits)).min()
        };
        UserLimits {
            max_connections: least(|limits| limits.max_connections),
            max_subscriptions: least(|limits| limits.max_subscriptions),
        }
    }
}

impl Block {
    fn line(&mut self, verb: &str, rest: &str) -> Result<(), String> {
        let (what, rest) = word(rest);
        if verb == "limit" {
            let limit = match what {
                "connections" => &mut self.limits.max_connections,
                "subscriptions" => &mut self.limits.max_subscriptions,
                _ => return Err("write 'limit connections N' or 'limit subscriptions N'".to_owned()),
            };
            let n = rest.parse().map_err(|_| format!("'{rest}' is not a number: write 'limit {what} 10'"))?;
            *limit = Some(limit.map_or(n, |other| other.min(n)));
            return Ok(());
        }
        let actions = match what {
            "publish" => PUBLISH,
            "receive" => RECEIVE,
            "subscribe" => SUBSCRIBE | RECEIVE,
            "readwrite" => PUBLISH | SUBSCRIBE | RECEIVE,
            _ => {
                return Err(format!(
                    "'{what}' is no action: write '{verb} publish FILTER', or subscribe, receive, readwrite"
                ));
            }
        };
        let (allow, pattern) = (verb == "allow", Pattern::parse(rest)?);
        match pattern.filter() {
            Some(filter) => self.by_filter.insert(&filter, Says { allow, actions }),
            None => self.mixed.push(self.rules.len()),
        }
        self.rules.push(Rule { allow, actions, pattern });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_index_says_what_the_rules_say(
            rules in prop::collection::vec(
                "(allow|deny) (publish|receive|subscribe|readwrite) (\\+|\\$?[ab]|%u|x%c|%%)(/(\\+|[ab]?|%u|%c)){0,2}(/#)?",
                0..8,
            ),
            own in 0_usize..4,
            topics in prop::collection::vec("\\$?[abu%](/[abcu]?){0,3}", 1..8),
            client in "[abc+]?",
        ) {
            let split = own.min(rules.len());
            let text = format!("all\n{}\nuser u\n{}\n", rules[..split].join("\n"), rules[split..].join("\n"));
            let acl = Acl::parse(&text).unwrap();
            for who in [Identity::user("u"), Identity::user("b"), Identity::anonymous()] {
                for topic in &topics {
                    for action in [PUBLISH, RECEIVE] {
                        prop_assert_eq!(
                            acl.allows_topic(&who, &client, action, topic),
                            acl.allows(&who, &client, action, topic),
                            "{} {}", topic, text
                        );
                    }
                }
            }
        }
    }
}
