//! The memory backend, which is the specification, passes all of it.

use postroad_conformance::memory::MemoryHarness;

postroad_conformance::conformance_tests!(MemoryHarness::new());

/// And behind connections, so that the cases about these are run, too.
mod wired {
    postroad_conformance::conformance_tests!(super::MemoryHarness::wired("memory-wired", None));
}

/// A case that no macro names would never be run by `conformance_tests!`.
#[test]
fn every_case_is_listed_once_and_in_order() {
    let registered: Vec<_> = postroad_conformance::cases().map(|case| case.name).collect();
    assert_eq!(registered, postroad_conformance::__for_all_cases!(__names));
}
