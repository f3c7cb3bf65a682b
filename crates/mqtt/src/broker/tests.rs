//! The broker on a simulated disk, with clients that speak packets.

mod exchange;
mod inspect;
mod limits;
mod queue;
mod recovery;
mod retained;
mod rig;
