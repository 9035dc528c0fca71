//! One question to several keepers at once, with one patience for all: a silent keeper costs the others nothing.
//!
//! Used by `resolve` and `lists`.

use crate::keeper::CallError;
use crate::supervise::Sr;
use catena_rpc::Text;
use serde_json::Value;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What one keeper said.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Whose keeper.
    pub(crate) sr: Arc<Sr>,
    /// Its result, or why there is none.
    pub(crate) outcome: catena_rpc::Reply,
    /// It has a keeper, and the keeper has not answered.
    pub(crate) silent: bool,
}

/// Asks all; the replies are in the order of `srs`. Ends early when a result is `enough`: who has not answered by then is
/// silent.
pub(crate) fn ask(
    srs: &[Arc<Sr>],
    method: &str,
    params: impl Fn(&Sr) -> Value,
    patience: Duration,
    enough: impl Fn(&Text) -> bool,
) -> Vec<Reply> {
    let deadline = Instant::now() + patience;
    let (sender, answers) = channel();
    let mut pending = Vec::new();
    let mut outcomes: Vec<Option<catena_rpc::Reply>> = Vec::new();
    for (number, sr) in srs.iter().enumerate() {
        let begun = sr.link().and_then(|link| {
            link.begin_as(number, method, params(sr), Vec::new(), sender.clone())
                .map_err(|error| sr.failure(error))
        });
        outcomes.push(match begun {
            Ok(request) => {
                pending.push(request);
                None
            }
            Err(failure) => Some(Err(failure)),
        });
    }
    drop(sender);
    let unanswered = loop {
        match answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((number, result)) => {
                let is_enough = result.as_ref().is_ok_and(&enough);
                outcomes[number] = Some(result.map_err(|error| srs[number].failure(error)));
                if is_enough {
                    break CallError::Silent;
                }
            }
            Err(RecvTimeoutError::Timeout) => break CallError::Silent,
            Err(RecvTimeoutError::Disconnected) => break CallError::Died,
        }
    };
    let replies = srs.iter().zip(outcomes).map(|(sr, outcome)| Reply {
        sr: Arc::clone(sr),
        silent: outcome.is_none(),
        outcome: outcome.unwrap_or_else(|| Err(sr.failure(unanswered.clone()))),
    });
    replies.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, attached};
    use serde_json::json;

    #[test]
    fn a_silent_keeper_and_a_dead_one_do_not_hide_the_others() {
        let good = attached("good", Script::new().answer("q", json!({"n": 1})));
        let silent = attached("silent", Script::new().ignore("q"));
        let dead = attached("dead", Script::new().die("q"));
        let srs = [silent, good, dead];
        let replies = ask(&srs, "q", |_| json!({}), Duration::from_millis(200), |_| false);
        assert_eq!(replies[1].outcome, Ok(json!({"n": 1}).into()));
        assert!(replies[0].silent && replies[2].silent && !replies[1].silent);
        let message = &replies[0].outcome.as_ref().unwrap_err().message;
        assert!(message.contains("does not answer"), "{message}");
    }

    #[test]
    fn a_result_that_is_enough_ends_the_wait() {
        let good = attached("good", Script::new().answer("q", json!({"n": 1})));
        let silent = attached("silent", Script::new().ignore("q"));
        // With this patience the test would hang if the silent one were waited for.
        let srs = [silent, good];
        let replies = ask(&srs, "q", |_| json!({}), Duration::from_secs(3600), |text| text.value()["n"] == 1);
        assert!(replies[0].silent && replies[1].outcome.is_ok());
    }
}
