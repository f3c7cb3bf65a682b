//! From a plan that fails to a small one that fails.

use crate::plan::{Climate, Kind, Plan};
use fastrand::Rng;

/// How many scattered handfuls of steps of one size are tried.
const SCATTERED: usize = 60;
/// Rounds without success after which it is called the least.
const VAIN: u32 = 3;

/// What makes a climate plainer.
const PLAINER: [fn(&mut Climate); 9] = [
    |climate| climate.output = 64 << 10,
    |climate| climate.pipe = 64 << 10,
    |climate| climate.tail_bytes = 1 << 20,
    |climate| climate.batch_bytes = 1 << 20,
    |climate| climate.ahead = false,
    |climate| climate.dedup = false,
    |climate| climate.interest = false,
    |climate| climate.token = false,
    |climate| climate.lag = None,
];

/// Leaves out clients and steps, and makes the rest plainer, as long as `fails` says that it still fails; asks at most
/// `budget` times.
pub fn shrink(plan: &Plan, mut budget: usize, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut best = plan.clone();
    let mut attempt = |best: &mut Plan, candidate: Plan| {
        if budget == 0 {
            return false;
        }
        budget -= 1;
        let smaller = fails(&candidate);
        if smaller {
            *best = candidate;
        }
        smaller
    };
    let none = Plan { reserve: Vec::new(), ..best.clone() };
    if !attempt(&mut best, none) {
        let mut all = best.clone();
        all.steps.append(&mut all.reserve);
        attempt(&mut best, all);
    }
    // What comes after the failure does not matter: the shortest beginning that fails, by halves.
    let all = best.steps.clone();
    let (mut low, mut high) = (0, all.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        let candidate = Plan { steps: all[..middle].to_vec(), ..best.clone() };
        if attempt(&mut best, candidate) { high = middle } else { low = middle + 1 }
    }
    for change in PLAINER {
        let mut candidate = best.clone();
        change(&mut candidate.climate);
        if candidate.climate != best.climate {
            attempt(&mut best, candidate);
        }
    }
    let mut whole = best.clone();
    for step in whole.steps.iter_mut().filter(|step| matches!(step.kind, Kind::Up | Kind::Down)) {
        // All the bytes that are under way.
        step.how = 2;
    }
    attempt(&mut best, whole);
    let mut rng = Rng::with_seed(plan.seed);
    let mut vain = 0;
    while vain < VAIN {
        let before = best.steps.len();
        for client in 0..u32::BITS {
            let mut candidate = best.clone();
            candidate.climate.clients &= !(1 << client);
            if candidate.climate.clients != best.climate.clients && candidate.climate.clients != 0 {
                attempt(&mut best, candidate);
            }
        }
        neighbours(&mut best, &mut attempt);
        // A step chooses among what there is: to leave out one alone changes what all others do, a few together may not.
        for share in [3, 6, 12, 25, 50] {
            for _ in 0..SCATTERED {
                let mut candidate = best.clone();
                candidate.steps.retain(|_| rng.u32(..share) > 0);
                if candidate.steps.len() < best.steps.len() {
                    attempt(&mut best, candidate);
                }
            }
        }
        vain = if best.steps.len() < before { 0 } else { vain + 1 };
    }
    best
}

/// Leaves out runs of steps: halves first, single ones last.
fn neighbours(best: &mut Plan, attempt: &mut impl FnMut(&mut Plan, Plan) -> bool) {
    let mut size = best.steps.len().div_ceil(2);
    while size > 0 {
        let before = best.steps.len();
        let mut from = 0;
        while from < best.steps.len() {
            let mut candidate = best.clone();
            candidate.steps.drain(from..(from + size).min(best.steps.len()));
            if !attempt(best, candidate) {
                from += size;
            }
        }
        // Once more with single steps as long as that helps.
        size = if size > 1 { size / 2 } else { usize::from(best.steps.len() < before) };
    }
}

#[cfg(test)]
mod tests {
    use super::shrink;
    use crate::plan::{Kind, Plan};

    #[test]
    fn only_what_makes_it_fail_is_left() {
        let plan = Plan::of(7, 300);
        let fails = |plan: &Plan| {
            let commits = plan.steps.iter().filter(|step| step.kind == Kind::Commit).count();
            commits >= 3 && plan.climate.clients & 0b100 != 0
        };
        assert!(fails(&plan));
        let small = shrink(&plan, 10_000, fails);
        assert_eq!(small.steps.len(), 3);
        assert_eq!(small.climate.clients, 0b100);
    }

    #[test]
    fn no_more_is_asked_than_may_be() {
        let plan = Plan::of(7, 300);
        let mut asked = 0;
        shrink(&plan, 10, |_| {
            asked += 1;
            false
        });
        assert_eq!(asked, 10);
    }
}
