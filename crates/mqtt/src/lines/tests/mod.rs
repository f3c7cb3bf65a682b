//! The doors on a simulated disk, with peers whose side is done by hand.

mod crash;
mod exchange;
mod ids;
mod letters;
mod login;
mod mqtt;
mod retry;
mod rig;
mod tcp;
