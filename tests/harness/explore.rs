//! Goes through all states of a model, the nearest first, so that the way to a fault is a shortest one.
//!
//! The models of several crates include this file (`#[path]`): they are tests of what those crates keep to themselves, and no
//! crate is below all of them. A state is known by a fingerprint of 64 bits.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The steps out of a state: what each is, and the state that it leads to or the fault that it is.
pub(crate) type Steps<S> = Vec<(String, Result<S, String>)>;

/// What was found where there is no fault.
pub(crate) struct Explored {
    /// How many states there are.
    pub(crate) states: usize,
    /// The way to a state from which none at rest can be reached.
    pub(crate) restless: Option<String>,
}

/// A state that was found: the step that led there first, whence it can be reached, and whether nothing is begun there.
struct Seen {
    step: String,
    from: Vec<usize>,
    at_rest: bool,
}

/// Goes through all states that `next` leads to from `first`. On failure: the shortest way to a fault.
pub(crate) fn explore<S: Hash>(
    first: S,
    next: impl Fn(&S) -> Steps<S>,
    is_at_rest: impl Fn(&S) -> bool,
) -> Result<Explored, String> {
    let mut numbers = HashMap::from([(print(&first), 0)]);
    let mut seen = vec![Seen { step: String::new(), from: Vec::new(), at_rest: is_at_rest(&first) }];
    let mut queue = VecDeque::from([(0, first)]);
    while let Some((number, state)) = queue.pop_front() {
        for (step, next) in next(&state) {
            let next = next.map_err(|fault| format!("{fault}: {}{step}", way(&seen, number)))?;
            let fresh = numbers.len();
            let to = *numbers.entry(print(&next)).or_insert(fresh);
            if to < fresh {
                seen[to].from.push(number);
                continue;
            }
            seen.push(Seen { step, from: vec![number], at_rest: is_at_rest(&next) });
            queue.push_back((to, next));
        }
    }
    let restless = restless(&seen).map(|number| way(&seen, number));
    Ok(Explored { states: seen.len(), restless })
}

fn print(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// The steps that lead there.
fn way(seen: &[Seen], mut number: usize) -> String {
    let mut steps = Vec::new();
    while let Some(&from) = seen[number].from.first().filter(|_| number > 0) {
        steps.push(seen[number].step.as_str());
        number = from;
    }
    steps.iter().rev().flat_map(|step| [*step, "; "]).collect()
}

/// A state from which none at rest can be reached.
fn restless(seen: &[Seen]) -> Option<usize> {
    let mut good: Vec<bool> = seen.iter().map(|state| state.at_rest).collect();
    let mut queue: Vec<usize> = (0..seen.len()).filter(|&number| good[number]).collect();
    while let Some(number) = queue.pop() {
        for &from in &seen[number].from {
            if !std::mem::replace(&mut good[from], true) {
                queue.push(from);
            }
        }
    }
    good.iter().position(|good| !good)
}
