//! A case: what it is called, what it needs, and what it does.

use std::sync::Arc;

use postroad_core::{BoxFuture, Capabilities};

use crate::cases::ALL;
use crate::context::{CaseResult, Context};
use crate::harness::{ChaosAbilities, Harness};
use crate::need::Need;

/// What runs a case.
pub type RunCase = fn(Arc<Context>) -> BoxFuture<'static, CaseResult>;

/// One rule of the contract, as a test.
#[derive(Clone, Copy)]
pub struct Case {
    /// `GROUP/NAME`.
    pub name: &'static str,
    /// All of these, or it is not run.
    pub needs: &'static [Need],
    /// The test.
    pub run: RunCase,
    /// What is run instead where the backend declares one of the needs absent: asking for it must be refused as
    /// [`Unsupported`](postroad_core::ErrorKind::Unsupported), not be done halfway or ignored.
    pub twin: Option<(Need, RunCase)>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).field("needs", &self.needs).finish_non_exhaustive()
    }
}

/// What is done with a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// It is run.
    Run,
    /// Its negative twin is run, since this is declared absent.
    Twin(Need),
    /// It is not run, since this is missing.
    Skip(Need),
}

impl Case {
    /// What is done with it on a backend that can do this.
    pub fn plan(&self, can: &Capabilities, chaos: ChaosAbilities) -> Plan {
        let missing = self.needs.iter().copied().find(|need| !need.is_met(can, chaos));
        match (missing, self.twin) {
            (None, _) => Plan::Run,
            (Some(_), Some((need, _))) if !need.is_met(can, chaos) => Plan::Twin(need),
            (Some(need), _) => Plan::Skip(need),
        }
    }

    /// What is done with it on this harness.
    pub fn plan_for(&self, harness: &dyn Harness) -> Plan {
        self.plan(&harness.capabilities(), harness.chaos())
    }
}

/// All cases, in the order of their groups.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    ALL.iter().copied().flatten()
}

/// The case of this name.
pub fn find(name: &str) -> Option<&'static Case> {
    cases().find(|case| case.name == name)
}

/// A table of cases: `case!("group/name", function, [Need, …])`, and the twin where there is one.
macro_rules! case {
    ($name:literal, $run:ident, [$($need:ident),*]) => {
        $crate::case::Case {
            name: $name,
            needs: &[$($crate::need::Need::$need),*],
            run: |cx| Box::pin($run(cx)),
            twin: None,
        }
    };
    ($name:literal, $run:ident, [$($need:ident),*], $absent:ident => $twin:ident) => {
        $crate::case::Case {
            name: $name,
            needs: &[$($crate::need::Need::$need),*],
            run: |cx| Box::pin($run(cx)),
            twin: Some(($crate::need::Need::$absent, |cx| Box::pin($twin(cx)))),
        }
    };
}

pub(crate) use case;
