//! The broker on a simulated disk, with clients that speak packets.

mod exchange;
mod retained;
mod rig;
