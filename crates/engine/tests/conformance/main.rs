//! The delivery contract on the `engine:` backend: in memory, on a real disk, and on a simulated disk where the broker
//! is killed and the power fails.

mod harness;

use harness::{EngineHarness, Place};

mod memory {
    postroad_conformance::conformance_tests!(super::EngineHarness::new(super::Place::Memory));
}

mod journal {
    postroad_conformance::conformance_tests!(super::EngineHarness::new(super::Place::Disk));
}

mod simulated_disk {
    postroad_conformance::conformance_tests!(super::EngineHarness::new(super::Place::Simulated));
}
