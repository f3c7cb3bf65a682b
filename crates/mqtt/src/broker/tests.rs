//! The broker on a simulated disk, with clients that speak packets.

mod durability;
mod exchange;
mod inspect;
mod letters;
mod limits;
mod logins;
mod queue;
mod reasons;
mod recovery;
mod retained;
mod rig;
