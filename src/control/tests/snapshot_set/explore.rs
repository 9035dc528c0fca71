//! Goes through all states, the nearest first, so that the way to a fault is a shortest one.

use crate::world::{Bounds, Dropped, State};
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A state that was found: how it was reached, and whence it can be.
struct Seen {
    step: String,
    from: Vec<usize>,
    at_rest: bool,
}

fn print(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Gives how many states there are, or the way to a fault, or to a state from which nothing comes to rest any more.
pub(crate) fn explore(bounds: Bounds, dropped: Dropped) -> Result<usize, String> {
    let first = State::new(bounds);
    let mut numbers = HashMap::from([(print(&first), 0)]);
    let mut seen = vec![Seen { step: String::new(), from: Vec::new(), at_rest: first.is_at_rest() }];
    let mut queue = VecDeque::from([(0, first)]);
    while let Some((number, state)) = queue.pop_front() {
        for (step, next) in state.next(dropped) {
            let next = next.and_then(|next| next.fault().map_or(Ok(next), Err));
            let next = next.map_err(|fault| format!("{fault}: {}{step}", way(&seen, number)))?;
            let fresh = numbers.len();
            let to = *numbers.entry(print(&next)).or_insert(fresh);
            if to < fresh {
                seen[to].from.push(number);
                continue;
            }
            seen.push(Seen { step, from: vec![number], at_rest: next.is_at_rest() });
            queue.push_back((to, next));
        }
    }
    match restless(&seen) {
        Some(number) if dropped == Dropped::None => {
            Err(format!("nothing comes to rest any more: {}", way(&seen, number)))
        }
        _ => Ok(seen.len()),
    }
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
