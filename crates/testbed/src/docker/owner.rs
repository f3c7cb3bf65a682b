//! Whose a Compose project is, and taking away what is nobody's any more.
//!
//! The name of a project carries its owner: the process that started it, by its id, its start time and its
//! pid namespace (a daemon may serve more than one). Everything Compose makes is labelled with that name.

use super::daemon::Daemon;
use crate::process::{self, is_alive, stat};
use crate::run::{output, output_within};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const LABEL: &str = "com.docker.compose.project";
/// Processes that work for a project have its name in this variable.
pub(crate) const MARK: &str = "POSTROAD_TESTBED_PROJECT";
const OWNED: &str = "postroad-run-";
const KEPT: &str = "postroad-up-";

/// Waits for the end of its owner, then removes the project, also one that is still being started.
/// Arguments: the project, the variable that marks its processes, and the daemon's lock, if it has one.
const REAPER: &str = r#"
trap : HUP INT TERM
read -r leave && exit 0
if [ -n "$3" ]; then exec 9<"$3"; flock -s 9; fi
for file in /proc/[0-9]*/environ; do
    if grep -qszxF "$2=$1" "$file"; then
        pid=${file#/proc/} pid=${pid%/environ}
        [ "$pid" = $$ ] || kill -s KILL "$pid" 2>/dev/null
    fi
done
# A call of a killed client may still be under way in the daemon: until nothing is found twice.
empty=0 rounds=0
while [ $empty -lt 2 ] && [ $rounds -lt 20 ]; do
    containers=$(docker ps -aq --filter "label=com.docker.compose.project=$1")
    networks=$(docker network ls -q --filter "label=com.docker.compose.project=$1")
    volumes=$(docker volume ls -q --filter "label=com.docker.compose.project=$1")
    if [ -z "$containers$networks$volumes" ]; then empty=$((empty + 1)); sleep 0.5; else empty=0; fi
    [ -z "$containers" ] || docker rm -fv $containers
    [ -z "$networks" ] || docker network rm $networks
    [ -z "$volumes" ] || docker volume rm -f $volumes
    rounds=$((rounds + 1))
done
"#;

/// Who a project belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// This process: it goes when we go.
    Us,
    /// Nobody in particular, under a name: it stays until it is taken down.
    Kept(String),
}

impl Owner {
    /// A name for a project of `service`.
    pub(crate) fn project(&self, service: &str) -> Result<String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        match self {
            Self::Kept(name) => Ok(format!("{KEPT}{name}")),
            Self::Us => {
                let pid = std::process::id() as i32;
                let (space, start) = (pid_space()?, start_time(pid).context("no /proc/PID/stat")?);
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                Ok(format!("{OWNED}{space}-{pid}-{start}-{number}-{service}"))
            }
        }
    }
}

/// Removes the project when its process is gone. Told to leave, it does nothing.
#[derive(Debug)]
pub(crate) struct Reaper(Child);

impl Reaper {
    pub(crate) fn start(daemon: &Daemon, project: &str) -> Result<Self> {
        let mut sh = Command::new("sh");
        sh.args(["-c", REAPER, "postroad-reaper", project, MARK]);
        sh.arg(daemon.lock_file().unwrap_or_default());
        for (name, value) in daemon.docker().get_envs() {
            sh.env(name, value.unwrap_or_default());
        }
        // Not one of those that a watcher above us ends.
        sh.env_remove(process::MARK);
        sh.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Ok(Self(sh.spawn().context("starting sh")?))
    }

    pub(crate) fn leave(mut self) {
        use std::io::Write;
        if let Some(mut stdin) = self.0.stdin.take() {
            let _ = stdin.write_all(b"leave\n");
        }
        let _ = self.0.wait();
    }
}

/// The projects of owners that are gone.
pub fn leftovers(daemon: &Daemon) -> Result<Vec<String>> {
    let space = pid_space()?;
    Ok(projects(daemon)?.into_iter().filter(|name| is_left_over(name, space, start_time)).collect())
}

/// Once a process: removes what killed runs have left.
pub fn sweep(daemon: &Daemon) {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        for project in leftovers(daemon).unwrap_or_default() {
            if let Err(error) = remove(daemon, &project) {
                eprintln!("testbed: {error:#}");
            }
        }
    });
}

/// Removes all that stays by itself or is left over, not what living processes own. Gives the names.
pub fn down_all(daemon: &Daemon) -> Result<Vec<String>> {
    let mut names = leftovers(daemon)?;
    names.extend(projects(daemon)?.into_iter().filter(|name| name.starts_with(KEPT)));
    for name in &names {
        remove(daemon, name)?;
    }
    Ok(names)
}

/// Removes a project by its labels: containers, networks, volumes. No compose file is needed.
pub fn remove(daemon: &Daemon, project: &str) -> Result<()> {
    let filter = format!("label={LABEL}={project}");
    let ids = |what: &[&str]| -> Result<Vec<String>> {
        let text = output(daemon.docker().args(what).args(["-q", "--filter", &filter]))?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    for (list, rm) in [
        (&["ps", "-a"][..], &["rm", "-f", "-v"][..]),
        (&["network", "ls"], &["network", "rm"]),
        (&["volume", "ls"], &["volume", "rm", "-f"]),
    ] {
        let found = ids(list)?;
        if !found.is_empty() {
            output(daemon.docker().args(rm).args(&found)).with_context(|| format!("removing {project}"))?;
        }
    }
    Ok(())
}

/// Every project of ours that has anything left.
pub fn projects(daemon: &Daemon) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let format = format!("{{{{.Label \"{LABEL}\"}}}}");
    for list in [&["ps", "-a"][..], &["network", "ls"], &["volume", "ls"]] {
        let mut docker = daemon.docker();
        docker.args(list).args(["--filter", &format!("label={LABEL}"), "--format", &format]);
        let text = output_within(&mut docker, Duration::from_secs(30))?;
        let ours = text.lines().filter(|name| name.starts_with(OWNED) || name.starts_with(KEPT));
        names.extend(ours.map(str::to_owned));
    }
    Ok(names)
}

/// Whether `name` is of a process of our namespace that is gone (or whose number somebody else has now).
fn is_left_over(name: &str, space: u64, started: impl Fn(i32) -> Option<u64>) -> bool {
    let Some(rest) = name.strip_prefix(OWNED) else { return false };
    let mut parts = rest.splitn(4, '-').map(str::parse::<u64>);
    let (Some(Ok(its_space)), Some(Ok(pid)), Some(Ok(start))) = (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    its_space == space && started(pid as i32) != Some(start)
}

/// When a process started, in ticks since boot; none if it does not run.
fn start_time(pid: i32) -> Option<u64> {
    if !is_alive(pid) {
        return None;
    }
    // Field 22; what is here begins with the third.
    stat(pid)?.split(' ').nth(19)?.parse().ok()
}

/// The number of our pid namespace.
fn pid_space() -> Result<u64> {
    let link = fs::read_link("/proc/self/ns/pid").context("no /proc/self/ns/pid")?;
    let digits: String = link.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    digits.parse().context("no number in /proc/self/ns/pid")
}

#[cfg(test)]
mod tests {
    use super::{Owner, is_left_over, pid_space, start_time};

    #[test]
    fn a_project_is_left_over_when_its_process_is_gone() {
        let mine = Owner::Us.project("redis").unwrap();
        let space = pid_space().unwrap();
        assert!(!is_left_over(&mine, space, start_time), "{mine}");
        assert!(is_left_over(&mine, space, |_| None), "its process is gone");
        assert!(is_left_over(&mine, space, |_| Some(7)), "its number is another process by now");
        assert!(!is_left_over(&mine, space + 1, |_| None), "of a namespace that we cannot see");
    }

    #[test]
    fn what_stays_and_what_is_not_ours_is_no_leftover() {
        let kept = Owner::Kept("rabbitmq".into()).project("rabbitmq").unwrap();
        for name in [kept.as_str(), "postroad-run-", "postroad-run-a-b-c-d", "somebody-else"] {
            assert!(!is_left_over(name, 1, |_| None), "{name}");
        }
    }

    #[test]
    fn names_differ_within_a_process() {
        assert_ne!(Owner::Us.project("redis").unwrap(), Owner::Us.project("redis").unwrap());
    }
}
