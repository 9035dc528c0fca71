//! A few threads for blocking I/O: as many requests in flight as there are threads.
//!
//! Threads live for one call, so they may borrow; nothing is queued behind the caller's back. Used by everything here that
//! reads or moves more than one block.

use crate::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Requests in flight: enough to keep a disk busy with 2 MiB requests, and 16 MiB of buffers.
pub(crate) const IN_FLIGHT: usize = 8;

/// Does `work` on every item, each thread with a state of its own, and returns the results in the order of the items. After
/// an error no further item is begun; the error of the earliest item is returned when those under way have ended.
pub(crate) fn map<S: Send, T: Sync, R: Send>(
    states: &mut [S],
    items: &[T],
    work: impl Fn(&mut S, &T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let serve = |state: &mut S| {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            let result = work(state, item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            done.push((index, result));
        }
        done
    };
    let Some((own, others)) = states.split_first_mut() else { return Ok(Vec::new()) };
    let helpers = items.len().saturating_sub(1).min(others.len());
    let mut done = thread::scope(|scope| {
        let serve = &serve;
        // Where the system gives no more threads, those that there are do the work; at least the caller's.
        let handles: Vec<_> = others[..helpers]
            .iter_mut()
            .map_while(|state| thread::Builder::new().spawn_scoped(scope, move || serve(state)).ok())
            .collect();
        let mut done = serve(own);
        for handle in handles {
            match handle.join() {
                Ok(part) => done.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u32> = (0..1000).collect();
        for threads in [1, 3, 8] {
            let mut states = vec![0u32; threads];
            let doubled = map(&mut states, &items, |count, item| {
                *count += 1;
                Ok(item * 2)
            });
            assert_eq!(doubled.unwrap(), items.iter().map(|item| item * 2).collect::<Vec<_>>());
            assert_eq!(states.iter().sum::<u32>(), 1000);
        }
    }

    #[test]
    fn the_earliest_error_wins_and_nothing_is_begun_after_it() {
        let items: Vec<u32> = (0..1000).collect();
        let begun = AtomicUsize::new(0);
        let error = map(&mut [(); 4], &items, |(), &item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if item >= 10 { Err(Error::OutOfRange(item.to_string())) } else { Ok(()) }
        });
        assert_eq!(error.unwrap_err().to_string(), "10");
        assert!(begun.into_inner() <= 14);
    }

    #[test]
    fn nothing_to_do_is_done() {
        assert_eq!(map(&mut [(); 4], &[] as &[u8], |(), _| Ok(())).unwrap().len(), 0);
    }
}
