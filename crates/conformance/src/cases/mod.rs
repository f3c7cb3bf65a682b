//! The cases, one file a group.

mod basic;
mod checkpoint;
mod connection;
mod content;
mod flow;
mod groups;
mod lease;
mod lifecycle;
mod load;
mod order;
mod publish;
mod replay;
mod settle;
pub(crate) mod twins;

use crate::case::Case;

/// All of them, in the order in which they are best read.
pub(crate) const ALL: &[&[Case]] = &[
    basic::CASES,
    content::CASES,
    publish::CASES,
    settle::CASES,
    lease::CASES,
    flow::CASES,
    order::CASES,
    groups::CASES,
    replay::CASES,
    checkpoint::CASES,
    lifecycle::CASES,
    connection::CASES,
    load::CASES,
];
