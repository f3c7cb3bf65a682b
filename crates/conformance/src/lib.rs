//! The delivery contract of `postroad-core`, as tests that any backend can run.
//!
//! A backend implements [`Backend`](postroad_core::Backend) and declares in its
//! [`Capabilities`](postroad_core::Capabilities) what it can do. This kit holds it to both: [`cases`] says what is
//! tested, and each case says what it needs. Where a backend declares an ability absent, the case's *negative twin* is
//! run instead: asking for it must be refused as [`Unsupported`](postroad_core::ErrorKind::Unsupported), not be
//! half-done or ignored. What cannot be tested at all is skipped, and says for which reason.
//!
//! # Certify a backend of your own
//!
//! 1. Write a [`Harness`]: its name, what it can do, and how a case gets an [`Environment`] where nobody else is. A broker
//!    that is shared needs only a prefix of its own for each case. [`memory::MemoryHarness`] is an example.
//! 2. In `tests/conformance.rs`, one line gives one `#[test]` for each case:
//!    ```
//!    # use postroad_conformance::memory::MemoryHarness as MyHarness;
//!    postroad_conformance::conformance_tests!(MyHarness::new());
//!    ```
//!    `cargo test settle` runs a group, `cargo test settle::retry` one case.
//! 3. `POSTROAD_CONFORMANCE_RENEW=1 cargo test` writes `capabilities/NAME.toml`: which cases are run, refused and skipped.
//!    Commit it. From then on a case that is silently no longer run fails the tests.
//! 4. Give the harness [`Chaos`]: restarts, kills, cuts. [`proxy::Proxy`] cuts and half-opens TCP connections to any
//!    broker; [`wire::Wire`] does so for a backend in this process.
//! 5. [`run_all`] gives a [`Report`] as JSON, JUnit XML, and a row of a Markdown table.
//!
//! What is random in a case follows from a seed. A failure prints it; `POSTROAD_CONFORMANCE_SEED` sets it.
//!
//! # What is in here besides
//!
//! - [`history`]: an offline checker of whole runs: nothing confirmed is lost, nothing comes after its ack, windows hold,
//!   order holds, attempts grow, and what comes twice has a reason to. Pure, for simulations and chaos tests, too.
//! - [`faulty`]: backends that break the contract on purpose, one way each. The kit's own tests hold it to catching all of
//!   them: a case that cannot fail is not a test.
//! - [`limited`]: a backend that can do less, to test the negative twins.
//! - [`wire`]: connections to a backend in this process, to be cut and silenced.

#[macro_use]
mod names;

pub mod case;
mod cases;
mod certificate;
mod context;
pub mod faulty;
mod harness;
pub mod history;
pub mod limited;
pub mod memory;
mod need;
pub mod proxy;
mod report;
mod run;
mod tokens;
pub mod wire;

pub use case::{Case, Plan, cases, find};
pub use certificate::{RENEW, certificate, check_certificate};
pub use context::{CaseResult, Context};
pub use harness::{Chaos, ChaosAbilities, Environment, Failure, Harness, Tempo, Time};
pub use need::Need;
pub use report::{Entry, Report};
pub use run::{SEED, Verdict, run_all, run_case, run_some, test_case};
