//! What the machine itself can do and what else it was doing: without it no figure can be judged.

use super::event::EVENT;
use crate::sh;
use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

/// The share of all cores that somebody used in the next `time`, in percent.
pub(crate) fn busy(time: Duration) -> Result<f64> {
    let (busy, all) = cpu()?;
    std::thread::sleep(time);
    let (busy_now, all_now) = cpu()?;
    Ok(100.0 * (busy_now - busy) as f64 / (all_now - all).max(1) as f64)
}

/// Ticks of all cores: busy ones, all.
fn cpu() -> Result<(u64, u64)> {
    ticks(&fs::read_to_string("/proc/stat")?).context("/proc/stat is not understood")
}

/// `cpu user nice system idle iowait irq softirq steal …`
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let all: u64 = ticks.iter().sum();
    Some((all - ticks.get(3)? - ticks.get(4)?, all))
}

/// One writer, one event at a time, nothing else: appended, and over blocks written before.
pub(crate) fn disk(time: Duration) -> Result<String> {
    let path = sh::target().join("bench").join(format!("disk-{}", std::process::id()));
    fs::create_dir_all(sh::target().join("bench"))?;
    let measured = (|| -> Result<String> {
        let mut file = File::create(&path)?;
        let append = syncs(&mut file, time)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&vec![b'\n'; 64 << 20])?;
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
        let written = syncs(&mut file, time)?;
        Ok(format!(
            "The disk alone, {EVENT} B and fdatasync, one after the other: appending {append}; over blocks \
             written before {written}."
        ))
    })();
    let _ = fs::remove_file(&path);
    measured.with_context(|| format!("measuring the disk with {}", path.display()))
}

fn syncs(file: &mut File, time: Duration) -> Result<String> {
    let mut hist = Histogram::<u64>::new(3)?;
    let event = [b'x'; EVENT];
    let start = Instant::now();
    let mut last = Duration::ZERO;
    while last < time {
        file.write_all(&event)?;
        file.sync_data()?;
        let now = start.elapsed();
        hist.record((now.saturating_sub(last)).as_nanos() as u64)?;
        last = now;
    }
    let us = |percent| hist.value_at_percentile(percent) as f64 / 1e3;
    let rate = super::report::thousands(hist.len() as f64 / last.as_secs_f64());
    Ok(format!("{rate}/s (p50 {:.0} us, p99 {:.0} us)", us(50.0), us(99.0)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn idle_and_waiting_for_the_disk_are_not_busy() {
        let stat = "cpu  10 1 5 100 50 1 2 3 0 0\ncpu0 1 1 1 1\n";
        assert_eq!(super::ticks(stat), Some((22, 172)));
        assert_eq!(super::ticks("cpu0 1"), None);
    }
}
