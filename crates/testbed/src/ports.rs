//! Loopback ports for servers, each given to one owner at a time, in all processes that use this crate.

use crate::places;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Systems hand ports from 32768 up to clients; one of them may sit there when the server restarts, and a
/// client that dials a port of that range in a loop may even connect to itself.
const FIRST: u16 = 21000;
const COUNT: u16 = 11000;

/// A port that nobody else gets while this lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: File,
}

impl Port {
    /// Its number, from 21000 to 31999.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Finds one that nobody listens on and nobody has claimed.
    pub fn claim() -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let dir = places::testbed()?.join("ports");
        fs::create_dir_all(&dir)?;
        let start = (u64::from(std::process::id()) * 37 % u64::from(COUNT)) as u16;
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
            let number = FIRST + (start + step) % COUNT;
            // The lock, not the file, is the claim: it ends with its process, however that ends.
            let claim = File::create(dir.join(number.to_string())).context("claiming a port")?;
            if claim.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self { number, _claim: claim });
            }
        }
        bail!("no free port from {FIRST} to {}", FIRST + COUNT - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::Port;

    #[test]
    fn a_port_is_given_once_and_below_the_clients_range() {
        let ports: Vec<Port> = (0..50).map(|_| Port::claim().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
        assert!(numbers.iter().all(|number| (21000..32000).contains(number)));
    }
}
