//! Images of brokers: upstream's where they can be pulled, else our own from Debian's packages or `go install`.
//!
//! Ours are `postroad-test/…`, never an upstream tag that they are not. Each carries a label with the hash of
//! all that it is made of, and is built again only when that has changed.

use super::daemon::{Daemon, apt_install};
use super::{cache, workspace};
use crate::broker::{Broker, version_matches};
use crate::run::{output, which};
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const RECIPE: &str = "io.postroad.recipe";

/// What an image of ours is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Image {
    /// The broker in it; none for Postroad.
    pub broker: Broker,
    /// The generation, which is also its tag.
    pub version: &'static str,
    /// Debian's release below it.
    suite: Suite,
    /// A server that is built by `go install` and copied in.
    server: Option<Server>,
}

/// A release of Debian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Suite {
    Bookworm,
    Trixie,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Server {
    module: &'static str,
    version: &'static str,
    program: &'static str,
}

const NATS: Server =
    Server { module: "github.com/nats-io/nats-server/v2", version: "v2.15.2", program: "nats-server" };
const STAN: Server = Server {
    module: "github.com/nats-io/nats-streaming-server",
    version: "v0.25.6",
    program: "nats-streaming-server",
};

/// Every image we can build. The first of a broker is what is built when no version is asked for.
pub const BUILT: [Image; 9] = [
    Image::debian(Broker::RabbitMq, "4.0", Suite::Trixie),
    Image::debian(Broker::RabbitMq, "3.10", Suite::Bookworm),
    Image { broker: Broker::Nats, version: "2.15", suite: Suite::Bookworm, server: Some(NATS) },
    Image::debian(Broker::Nats, "2.10", Suite::Trixie),
    Image { broker: Broker::NatsStreaming, version: "0.25.6", suite: Suite::Bookworm, server: Some(STAN) },
    Image::debian(Broker::Mosquitto, "2.0.21", Suite::Trixie),
    Image::debian(Broker::Mosquitto, "2.0.11", Suite::Bookworm),
    Image::debian(Broker::Redis, "7.0", Suite::Bookworm),
    Image::debian(Broker::Beanstalkd, "1.12", Suite::Bookworm),
];

/// Images of the brokers' own authors, pinned. The first of a broker is the default of its compose file.
const UPSTREAM: [(Broker, &str, &str); 9] = [
    (Broker::RabbitMq, "4.1", "rabbitmq:4.1.4-management"),
    (Broker::RabbitMq, "4.0", "rabbitmq:4.0.9-management"),
    (Broker::RabbitMq, "3.13", "rabbitmq:3.13.7-management"),
    (Broker::Nats, "2.12", "nats:2.12.1-alpine"),
    (Broker::Nats, "2.10", "nats:2.10.29-alpine"),
    (Broker::NatsStreaming, "0.25.6", "nats-streaming:0.25.6-alpine"),
    (Broker::Mosquitto, "2.0", "eclipse-mosquitto:2.0.22"),
    (Broker::Redis, "7.4", "redis:7.4.6-alpine"),
    (Broker::Redis, "7.2", "redis:7.2.11-alpine"),
];

/// What was done to have an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// It was named by `POSTROAD_IMAGE_…`.
    Named,
    /// It was here.
    Here,
    /// It was pulled from upstream.
    Pulled,
    /// It was built.
    Built,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Named => "named",
            Self::Here => "here",
            Self::Pulled => "pulled",
            Self::Built => "built",
        })
    }
}

/// An image that can be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// What to give to Compose.
    pub image: String,
    /// Where it came from.
    pub how: How,
}

/// An image of the broker: of this version (`4`, `3.10`), or of any.
///
/// In this order: `POSTROAD_IMAGE_<BROKER>`; what is here; upstream's, pulled; ours, built. An error if no
/// image of that version is known or none could be had.
pub fn resolve(daemon: &Daemon, broker: Broker, version: Option<&str>) -> Result<Resolved> {
    let variable = format!("POSTROAD_IMAGE_{}", broker.name().to_uppercase().replace('-', "_"));
    // A version that is asked for is not answered with some other image.
    if let (Ok(image), None) = (std::env::var(&variable), version)
        && !image.is_empty()
    {
        if !is_here(daemon, &image) {
            pull(daemon, &image).with_context(|| format!("{variable}={image}"))?;
        }
        return Ok(Resolved { image, how: How::Named });
    }
    let (upstream, built) = (upstream(broker, version), built(broker, version));
    if upstream.is_empty() && built.is_empty() {
        bail!("no image of {broker} {} is known; there are {}", version.unwrap_or_default(), known(broker));
    }
    if let Some(tag) = upstream.iter().find(|tag| is_here(daemon, tag)) {
        return Ok(Resolved { image: (*tag).to_owned(), how: How::Here });
    }
    if let Some(image) = built.iter().find(|image| image.is_current(daemon)) {
        return Ok(Resolved { image: image.tag(), how: How::Here });
    }
    let pulled = upstream.first().map(|tag| pull(daemon, tag).map(|()| (*tag).to_owned()));
    match (pulled, built.first()) {
        (Some(Ok(image)), _) => Ok(Resolved { image, how: How::Pulled }),
        (_, Some(image)) => {
            image.build(daemon)?;
            Ok(Resolved { image: image.tag(), how: How::Built })
        }
        (Some(Err(error)), None) => {
            Err(error.context(format!("{broker}: pulling, and there is nothing to build")))
        }
        (None, None) => bail!("no image of {broker}"),
    }
}

/// Builds every image of `wanted` that is not here as it should be, and says what was done and how long it took.
pub fn build_missing(
    daemon: &Daemon,
    wanted: &[Image],
    mut done: impl FnMut(&Image, How, Duration),
) -> Result<()> {
    for image in wanted {
        let start = Instant::now();
        let how = if image.is_current(daemon) {
            How::Here
        } else {
            image.build(daemon)?;
            How::Built
        };
        done(image, how, start.elapsed());
    }
    Ok(())
}

/// Images of ours for `broker[@version]`; the preferred one first.
pub fn built(broker: Broker, version: Option<&str>) -> Vec<Image> {
    let fits = |image: &Image| {
        version.is_none_or(|wanted| {
            version_matches(image.version, wanted) || version_matches(wanted, image.version)
        })
    };
    BUILT.into_iter().filter(|image| image.broker == broker && fits(image)).collect()
}

fn upstream(broker: Broker, version: Option<&str>) -> Vec<&'static str> {
    let fits = |generation: &str| version.is_none_or(|wanted| version_matches(generation, wanted));
    UPSTREAM.iter().filter(|entry| entry.0 == broker && fits(entry.1)).map(|entry| entry.2).collect()
}

fn known(broker: Broker) -> String {
    let ours = built(broker, None).into_iter().map(|image| image.version);
    let theirs = UPSTREAM.iter().filter(|entry| entry.0 == broker).map(|entry| entry.1);
    ours.chain(theirs).collect::<Vec<_>>().join(", ")
}

pub use super::product::{postroad, postroad_from_source};

impl Image {
    const fn debian(broker: Broker, version: &'static str, suite: Suite) -> Self {
        Self { broker, version, suite, server: None }
    }

    /// `postroad-test/rabbitmq:4.0`.
    pub fn tag(&self) -> String {
        format!("postroad-test/{}:{}", self.broker.name(), self.version)
    }

    /// Where its Dockerfile is.
    pub fn dir(&self) -> PathBuf {
        folder(match (self.broker, self.server) {
            (Broker::Nats, None) => "nats-debian",
            (broker, _) => broker.name(),
        })
    }

    /// Whether it is here and made of what it would be made of now.
    pub fn is_current(&self, daemon: &Daemon) -> bool {
        self.recipe().is_ok_and(|recipe| label(daemon, &self.tag()).as_deref() == Some(&recipe))
    }

    fn recipe(&self) -> Result<String> {
        let server =
            self.server.map(|server| format!("{}@{}", server.module, server.version)).unwrap_or_default();
        Ok(hash(&[&files_of(&self.dir())?, base_recipe(self.suite).as_bytes(), server.as_bytes()]))
    }

    fn build(&self, daemon: &Daemon) -> Result<()> {
        let server = self.server.map(|server| server.install()).transpose()?;
        let base = ensure_base(daemon, self.suite)?;
        let context = context(&self.dir(), server.as_deref())?;
        build(daemon, &self.tag(), &self.recipe()?, context.path(), &["--build-arg", &format!("BASE={base}")])
    }
}

impl Server {
    /// A static program, so that it runs in any image.
    fn install(&self) -> Result<PathBuf> {
        let dir = cache().join("bin").join(format!("{}-{}", self.program, self.version));
        let program = dir.join(self.program);
        if !program.is_file() {
            let go = which("go").with_context(|| format!("building {} needs Go", self.program))?;
            let mut install = Command::new(go);
            install.args(["install", "-ldflags", "-s -w", &format!("{}@{}", self.module, self.version)]);
            output(install.env("GOBIN", &dir).env("CGO_ENABLED", "0"))?;
        }
        Ok(program)
    }
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    fn tag(self) -> String {
        format!("postroad-test/base:{}", self.name())
    }
}

/// What debootstrap unpacks and no container needs.
const LEFT_OUT: [&str; 5] = [
    "./var/cache/apt/*",
    "./var/lib/apt/lists/*",
    "./usr/share/doc/*",
    "./usr/share/man/*",
    "./usr/share/locale/*",
];

pub(super) fn base_recipe(suite: Suite) -> String {
    hash(&[b"debootstrap minbase 1", suite.name().as_bytes(), LEFT_OUT.join(" ").as_bytes()])
}

/// Debian as an image: upstream's, or without a registry what debootstrap makes, imported.
pub(super) fn ensure_base(daemon: &Daemon, suite: Suite) -> Result<String> {
    let (tag, recipe) = (suite.tag(), base_recipe(suite));
    if label(daemon, &tag).as_deref() == Some(&recipe) {
        return Ok(tag);
    }
    let upstream = format!("debian:{}-slim", suite.name());
    if is_here(daemon, &upstream) || pull(daemon, &upstream).is_ok() {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("Dockerfile"), format!("FROM {upstream}\n"))?;
        build(daemon, &tag, &recipe, dir.path(), &[])?;
        return Ok(tag);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "{upstream} cannot be pulled, and only root can make {tag} (debootstrap)"
    );
    if which("debootstrap").is_none() {
        apt_install(&["debootstrap"])?;
    }
    fs::create_dir_all(cache())?;
    let dir = tempfile::Builder::new().prefix("base-").tempdir_in(cache())?;
    let root = dir.path().join(suite.name());
    let debootstrap = which("debootstrap").context("no debootstrap, also after it was installed")?;
    output(Command::new(debootstrap).args(["--variant=minbase", suite.name()]).arg(&root))?;

    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).arg("--numeric-owner");
    tar.args(LEFT_OUT.map(|path| format!("--exclude={path}"))).args(["-c", "."]);
    let mut tar = tar.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting tar")?;
    let archive = tar.stdout.take().context("tar has no stdout")?;
    let mut import = daemon.docker();
    import.args([
        "import",
        "--change",
        "CMD [\"bash\"]",
        "--change",
        &format!("LABEL {RECIPE}={recipe}"),
        "-",
        &tag,
    ]);
    let imported = import.stdin(archive).stdout(Stdio::null()).status().context("docker import")?;
    let packed = tar.wait()?;
    ensure!(imported.success() && packed.success(), "docker import {tag}: {imported}, tar: {packed}");
    Ok(tag)
}

/// What is sent to the daemon: the folder of the Dockerfile, and one program. It is small on purpose.
pub(super) fn context(dir: &Path, program: Option<&Path>) -> Result<tempfile::TempDir> {
    let context = tempfile::tempdir()?;
    for entry in fs::read_dir(dir)? {
        let file = entry?.path();
        fs::copy(&file, context.path().join(file.file_name().unwrap_or_default()))?;
    }
    if let Some(program) = program {
        fs::copy(program, context.path().join(program.file_name().unwrap_or_default()))?;
    }
    Ok(context)
}

pub(super) fn build(daemon: &Daemon, tag: &str, recipe: &str, context: &Path, more: &[&str]) -> Result<()> {
    let mut build = build_command(daemon, tag, recipe);
    output(build.args(more).arg(context)).with_context(|| format!("building {tag}"))?;
    Ok(())
}

pub(super) fn build_command(daemon: &Daemon, tag: &str, recipe: &str) -> Command {
    let mut build = daemon.docker();
    // The classic builder: BuildKit wants a plugin of its own, and these files need nothing of it.
    build.env("DOCKER_BUILDKIT", "0").args(["build", "--network", "host", "--force-rm", "--pull=false"]);
    build.args(["--label", &format!("{RECIPE}={recipe}"), "--tag", tag]);
    build
}

/// The folder of a Dockerfile of ours.
pub(super) fn folder(name: &str) -> PathBuf {
    workspace().join("compose/images").join(name)
}

/// Pulls an image. After one failure no registry is asked again by this process.
pub(super) fn pull(daemon: &Daemon, tag: &str) -> Result<()> {
    static NO_REGISTRY: AtomicBool = AtomicBool::new(false);
    ensure!(!NO_REGISTRY.load(Ordering::Relaxed), "no registry could be reached before");
    let pulled = output(daemon.docker().args(["pull", "--quiet", tag]));
    if pulled.is_err() {
        NO_REGISTRY.store(true, Ordering::Relaxed);
    }
    pulled.map(drop)
}

pub(super) fn is_here(daemon: &Daemon, tag: &str) -> bool {
    output(daemon.docker().args(["image", "inspect", "--format", "{{.Id}}", tag])).is_ok()
}

pub(super) fn label(daemon: &Daemon, tag: &str) -> Option<String> {
    let format = format!("{{{{index .Config.Labels \"{RECIPE}\"}}}}");
    let text = output(daemon.docker().args(["image", "inspect", "--format", &format, tag])).ok()?;
    Some(text.trim().to_owned())
}

/// Names and contents of the files in a folder.
pub(super) fn files_of(dir: &Path) -> Result<Vec<u8>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    let mut bytes = Vec::new();
    for file in files {
        bytes.extend(file.file_name().unwrap_or_default().as_encoded_bytes());
        bytes.push(0);
        bytes.extend(fs::read(&file)?);
        bytes.push(0);
    }
    Ok(bytes)
}

/// FNV-1a of 64 bits: the same on every machine and in every version. It finds changes, not attackers.
pub(super) fn hash(parts: &[&[u8]]) -> String {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.iter().chain(&(part.len() as u64).to_le_bytes()) {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{state:016x}")
}

#[cfg(test)]
mod tests {
    use super::{BUILT, UPSTREAM, built, files_of, hash, upstream};
    use crate::broker::Broker;
    use crate::docker::compose::file;
    use std::fs;

    #[test]
    fn every_image_has_its_dockerfile_on_a_base() {
        for image in BUILT {
            let text = fs::read_to_string(image.dir().join("Dockerfile")).unwrap();
            assert!(text.contains("\nARG BASE=") && text.contains("\nFROM ${BASE}\n"), "{}", image.tag());
            if let Some(server) = image.server {
                assert!(text.contains(&format!("COPY {} ", server.program)), "{}", image.tag());
            }
        }
    }

    #[test]
    fn the_compose_files_and_this_table_name_the_same_default() {
        for broker in Broker::ALL {
            let first = upstream(broker, None)
                .first()
                .map_or_else(|| built(broker, None)[0].tag(), |tag| (*tag).into());
            let text = fs::read_to_string(file(broker.name())).unwrap();
            assert!(text.contains(&format!(":-{first}}}\n")), "{broker}: not {first}");
        }
        for (_, version, tag) in UPSTREAM {
            assert!(tag.split_once(':').unwrap().1.starts_with(version), "{tag} is no {version}");
        }
    }

    #[test]
    fn a_version_gets_its_own_image_and_no_other() {
        let tags = |broker, version| built(broker, version).iter().map(super::Image::tag).collect::<Vec<_>>();
        assert_eq!(tags(Broker::RabbitMq, Some("3.10")), ["postroad-test/rabbitmq:3.10"]);
        assert_eq!(tags(Broker::RabbitMq, Some("4")), ["postroad-test/rabbitmq:4.0"]);
        assert_eq!(tags(Broker::RabbitMq, Some("3.10.8")), ["postroad-test/rabbitmq:3.10"]);
        assert_eq!(tags(Broker::RabbitMq, Some("3.1")), [""; 0]);
        assert_eq!(upstream(Broker::RabbitMq, Some("3.13")), ["rabbitmq:3.13.7-management"]);
        assert_eq!(tags(Broker::Mosquitto, None)[0], "postroad-test/mosquitto:2.0.21");
    }

    #[test]
    fn an_image_has_another_recipe_when_its_base_or_its_dockerfile_is_another() {
        let of = |version| built(Broker::RabbitMq, Some(version))[0];
        assert_eq!(of("4.0").dir(), of("3.10").dir());
        assert_ne!(of("4.0").recipe().unwrap(), of("3.10").recipe().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join("Dockerfile"), text).unwrap();
        write("FROM a\n");
        let before = files_of(dir.path()).unwrap();
        assert_eq!(before, files_of(dir.path()).unwrap());
        write("FROM b\n");
        assert_ne!(before, files_of(dir.path()).unwrap());
    }

    #[test]
    fn a_recipe_changes_with_any_of_its_parts() {
        assert_ne!(hash(&[b"a", b"b"]), hash(&[b"ab", b""]));
        assert_ne!(hash(&[b"a", b"b"]), hash(&[b"a", b"c"]));
        assert_eq!(hash(&[b"a"]), hash(&[b"a"]));
    }
}
