//! What a run measures, from its flags.

use super::brokers::Brand;
use super::packets::Version;
use super::recovery;
use super::speed::{Load, Sessions, Shape};
use crate::args::Args;
use anyhow::{Result, bail, ensure};
use std::time::Duration;

/// A part of the table: who publishes to whom, and how much may be under way.
struct Part {
    name: &'static str,
    shape: Shape,
    window: u16,
    /// Of a quick run, which has one row for each part.
    quick: u8,
    /// Whether latency at half load has a limit.
    limited: bool,
}

const fn part(name: &'static str, shape: Shape, window: u16, quick: u8, limited: bool) -> Part {
    Part { name, shape, window, quick, limited }
}

const PARTS: [Part; 5] = [
    part("pair", Shape::Pairs(1), 100, 2, true),
    part("pairs", Shape::Pairs(4), 100, 1, true),
    part("fanout", Shape::FanOut(100), 100, 0, true),
    part("fanin", Shape::FanIn(100), 10, 2, true),
    part("lone", Shape::Pairs(1), 1, 1, false),
];
const OTHER_PARTS: [&str; 3] = ["slow", "idle", "recovery"];

pub(super) struct Plan {
    parts: Vec<String>,
    pub(super) brands: Vec<Brand>,
    /// Brands that cannot be asked for, each with the reason.
    pub(super) left_out: Vec<(Brand, &'static str)>,
    /// `None`: all, or those of a quick run.
    qos: Option<Vec<u8>>,
    pub(super) sessions: Sessions,
    pub(super) ahead: bool,
    pub(super) quick: bool,
    pub(super) rounds: u64,
    pub(super) time: Duration,
    pub(super) conns: u64,
    pub(super) recovery: recovery::Size,
}

impl Plan {
    pub(super) fn of(args: &Args) -> Result<Self> {
        let quick = args.has("quick");
        let mut names: Vec<&str> = Brand::ALL.map(Brand::name).into();
        names.dedup();
        let mut brands: Vec<Brand> = match listed(args, "servers", &names)? {
            Some(wanted) => {
                let named = |brand: &Brand| wanted.iter().any(|name| name == brand.name());
                Brand::ALL.into_iter().filter(named).collect()
            }
            None => Brand::ALL.into_iter().filter(|brand| brand.by_default(quick)).collect(),
        };
        let version = match args.text("protocol") {
            None | Some("3.1.1") => Version::V311,
            Some("5") => Version::V5,
            Some(other) => bail!("--protocol {other}: there is 3.1.1, 5"),
        };
        let left_out: Vec<(Brand, &str)> =
            brands.iter().filter_map(|brand| Some((*brand, brand.lacks_version(version)?))).collect();
        brands.retain(|brand| brand.lacks_version(version).is_none());
        let clean = match args.text("sessions") {
            None | Some("durable") => false,
            Some("clean") => true,
            Some(other) => bail!("--sessions {other}: there is durable, clean"),
        };
        let qos = listed(args, "qos", &["0", "1", "2"])?
            .map(|levels| levels.iter().map(|level| level.as_bytes()[0] - b'0').collect());
        let time = args.get("seconds")?.unwrap_or(if quick { 0.15 } else { 0.8 });
        ensure!((0.05..=600.0).contains(&time), "--seconds is from 0.05 to 600");
        let rounds = args.get("rounds")?.unwrap_or(if quick { 1 } else { 3 });
        ensure!((1..=100).contains(&rounds), "--rounds is from 1 to 100");
        let (conns, retained, offline) =
            if quick { (500, 20_000, 2_000) } else { (10_000, 1_000_000, 100_000) };
        let all: Vec<&str> = PARTS.iter().map(|part| part.name).chain(OTHER_PARTS).collect();
        let parts = listed(args, "only", &all)?;
        Ok(Self {
            parts: parts.unwrap_or_else(|| all.into_iter().map(str::to_owned).collect()),
            brands,
            left_out,
            qos,
            sessions: Sessions { version, clean },
            ahead: args.has("ahead"),
            quick,
            rounds,
            time: Duration::from_secs_f64(time),
            conns,
            recovery: recovery::Size { retained, sessions: offline },
        })
    }

    pub(super) fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }

    /// The levels that are asked for, all if none are.
    pub(super) fn qos(&self) -> Vec<u8> {
        self.qos.clone().unwrap_or_else(|| vec![0, 1, 2])
    }

    /// The rows of the table, for every broker.
    pub(super) fn loads(&self) -> Vec<Load> {
        let levels = |part: &Part| match (&self.qos, self.quick) {
            (None, true) => vec![part.quick],
            _ => self.qos(),
        };
        let wanted = PARTS.iter().filter(|part| self.has(part.name));
        wanted.flat_map(|part| levels(part).into_iter().map(|qos| self.load(part, qos))).collect()
    }

    /// The loads whose latency has a limit.
    pub(super) fn limited(&self) -> Vec<Load> {
        let limited =
            |load: &Load| PARTS.iter().any(|part| part.limited && *load == self.load(part, load.qos));
        self.loads().into_iter().filter(limited).collect()
    }

    fn load(&self, part: &Part, qos: u8) -> Load {
        Load { shape: part.shape, window: part.window, qos, ahead: self.ahead }
    }
}

/// The words of a flag's list, each of which is one of `all`.
fn listed(args: &Args, name: &str, all: &[&str]) -> Result<Option<Vec<String>>> {
    let Some(text) = args.text(name) else { return Ok(None) };
    let wanted: Vec<String> = text.split(',').map(str::to_owned).collect();
    match wanted.iter().find(|word| !all.contains(&word.as_str())) {
        Some(unknown) => bail!("--{name} {unknown}: there is {}", all.join(", ")),
        None => Ok(Some(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use super::Plan;
    use crate::args::Args;
    use crate::bench::mqtt::brokers::Brand;

    fn plan(flags: &str) -> Plan {
        let raw: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        Plan::of(&Args::parse(&raw, &["quick", "ahead"], &["only", "servers", "qos", "protocol"]).unwrap())
            .unwrap()
    }

    #[test]
    fn a_quick_run_has_one_row_for_each_part_unless_levels_are_named() {
        assert_eq!(plan("").loads().len(), 15);
        assert_eq!(plan("--quick").loads().len(), 5);
        assert_eq!(plan("--quick --qos 0,1,2 --only pair,lone").loads().len(), 6);
        assert_eq!(plan("--only pair,lone").limited().len(), 3);
    }

    #[test]
    fn servers_that_take_long_to_get_are_there_when_they_are_named() {
        assert!(!plan("").brands.contains(&Brand::RabbitMq));
        assert!(plan("").brands.contains(&Brand::MochiBolt));
        assert!(!plan("--quick").brands.contains(&Brand::MochiBolt));
        assert_eq!(plan("--servers rabbitmq").brands, [Brand::RabbitMq]);
        let old = plan("--servers nats,mochi --protocol 5");
        assert_eq!((old.brands, old.left_out[0].0), (vec![Brand::Mochi], Brand::Nats));
    }
}
