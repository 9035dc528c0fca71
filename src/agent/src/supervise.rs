//! One SR and the supervision of its keeper.
//!
//! A thread for each SR that is meant to be attached starts its keeper, sends `SR.attach`, waits for the keeper's end and starts
//! the next one after a pause. A refusal that waiting does not help against is final: an administrator has to look. Any other is
//! tried again, less and less often: storage that was not there comes back. Nobody waits for these tries, so storage that then hangs
//! holds up none but them. What leads where is in `phase`. Requests find the keeper through [`Sr::link`]; `lifecycle` starts and stops.

use crate::keeper::{CallError, Link};
use crate::launch::{Keeper, Starter};
use crate::phase::{Happening, Phase, deaths_in_a_row, pause, rest};
use crate::srd::SrEntry;
use catena_rpc::{Away, KeeperAttach};
use catena_types::{ErrorName, Failure, SrUuid};
use serde_json::{Value, json};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a request waits for a keeper that is just being started, and a stop for one that is about to end.
const MOMENT: Duration = Duration::from_secs(15);

/// An SR that this host knows.
#[derive(Debug)]
pub(crate) struct Sr {
    entry: Mutex<SrEntry>,
    state: Mutex<State>,
    changed: Condvar,
    /// Held by who attaches, detaches, forgets or destroys it.
    pub(crate) lifecycle: Mutex<()>,
}

/// How an SR is, for lists and statistics.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// Its phase.
    pub(crate) phase: Phase,
    /// Its keeper's process.
    pub(crate) keeper_pid: Option<u32>,
    /// How often a keeper was started in the place of one that died.
    pub(crate) restarts: u64,
    /// Why it is not attached.
    pub(crate) error: Option<Failure>,
    /// Since when, and why at first, where the refusals may pass.
    away: Option<(Instant, String)>,
    /// To clients only of one that has attached, or is attaching and they wait for it.
    link: Option<Arc<Link>>,
    /// The next attach takes the SR over from another host.
    take_over: bool,
    /// The SR has a supervising thread. One that has seen no use for itself clears this under the same lock, so there is
    /// never a second one.
    supervised: bool,
}

impl Sr {
    /// A detached SR.
    pub(crate) fn new(entry: SrEntry) -> Self {
        let state = State {
            phase: Phase::Detached,
            keeper_pid: None,
            restarts: 0,
            error: None,
            away: None,
            link: None,
            take_over: false,
            supervised: false,
        };
        Self {
            entry: Mutex::new(entry),
            state: Mutex::new(state),
            changed: Condvar::new(),
            lifecycle: Mutex::new(()),
        }
    }

    /// What is known of it.
    pub(crate) fn entry(&self) -> SrEntry {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is known of it. Who calls it has written it down before.
    pub(crate) fn set_entry(&self, entry: SrEntry) {
        *self.entry.lock().unwrap_or_else(PoisonError::into_inner) = entry;
    }

    /// Its id.
    pub(crate) fn uuid(&self) -> SrUuid {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner).uuid
    }

    /// How it is.
    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    /// How it is when a start has come to something, or has not within a moment.
    pub(crate) fn settled(&self) -> State {
        self.wait_while(MOMENT, |state| state.phase == Phase::Starting)
    }

    /// Whether it could not be attached, and that may pass.
    pub(crate) fn is_tried_again(&self) -> bool {
        self.lock().is_to_be_tried()
    }

    /// The keeper, to send it requests. While the SR is being attached, the keeper queues them.
    pub(crate) fn link(&self) -> Result<Arc<Link>, Failure> {
        let state = self.wait_while(MOMENT, |state| state.phase == Phase::Starting && state.link.is_none());
        match (state.phase, state.link) {
            (Phase::Starting | Phase::Attached, Some(link)) => Ok(link),
            (phase, _) => Err(self.unavailable(phase, state.error)),
        }
    }

    /// What a client gets for a request that its keeper did not carry out.
    pub(crate) fn failure(&self, error: CallError) -> Failure {
        match (error, self.state().phase) {
            // It has not been silent, only busy with what comes first.
            (CallError::Silent, Phase::Starting) => self.unavailable(Phase::Starting, None),
            (error, _) => error.into_failure(self.uuid()),
        }
    }

    fn unavailable(&self, phase: Phase, error: Option<Failure>) -> Failure {
        let entry = self.entry();
        let name = format!("SR {} ({})", entry.uuid, entry.name_label);
        let may_pass = error.as_ref().is_some_and(|error| error.retry);
        let why = error.map(|error| format!(": {}", error.message)).unwrap_or_default();
        let failure = |what: &str| Failure::new(ErrorName::SrUnavailable, format!("{name} {what}"));
        let failure = match phase {
            Phase::Detached => {
                failure("is not attached").hint(format!("attach it: catena sr attach {}", entry.uuid))
            }
            Phase::Failed if may_pass => failure(&format!("could not be attached{why}"))
                .hint(format!("it is tried again by itself; at once with: catena sr attach {}", entry.uuid))
                .retry(),
            Phase::Failed => failure(&format!("could not be attached{why}"))
                .hint(format!("mend the cause, then: catena sr attach {}", entry.uuid)),
            Phase::Starting | Phase::Attached => failure("is being attached").retry(),
            Phase::Waiting => failure(&format!("has lost its keeper, which is being restarted{why}")).retry(),
            Phase::Stopping => failure("is being detached").retry(),
        };
        failure.object("sr", entry.uuid)
    }

    /// Starts the supervision with a keeper that is told to attach. Means nothing while the SR is attached or about to be,
    /// but ends the pause before a restart.
    pub(crate) fn start(self: &Arc<Self>, starter: &Arc<Starter>, take_over: bool) -> Result<(), Failure> {
        // The refusal of a keeper that is just ending is told to those who wait for it; another one is started after it.
        // A try that nobody waits for is let go on first: the next one may take the SR over.
        self.wait_while(MOMENT, |state| match state.phase {
            Phase::Starting => state.error.is_some(),
            Phase::Failed => state.link.is_some(),
            _ => false,
        });
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Starting | Phase::Attached) {
            state.take_over = take_over;
            state.error = None;
        }
        self.supervise_from(state, starter, None)
    }

    /// Starts the supervision with a keeper that has just created or introduced the SR.
    pub(crate) fn adopt(self: &Arc<Self>, starter: &Arc<Starter>, keeper: Keeper) -> Result<(), Failure> {
        // The supervision of keepers that failed before may be about to end.
        self.wait_while(MOMENT, |state| state.supervised);
        self.publish(&keeper);
        self.supervise_from(self.lock(), starter, Some(keeper))?;
        self.happened(Happening::Attached);
        Ok(())
    }

    fn supervise_from(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        starter: &Arc<Starter>,
        keeper: Option<Keeper>,
    ) -> Result<(), Failure> {
        let phase = state.phase.after(Happening::Start);
        if !state.supervised {
            let (sr, starter) = (Arc::clone(self), Arc::clone(starter));
            let thread = thread::Builder::new().name("supervisor".to_owned());
            thread.spawn(move || sr.supervise(&starter, keeper)).map_err(|error| {
                Failure::new(ErrorName::TryAgain, format!("no thread can be started: {error}"))
            })?;
            state.supervised = true;
        }
        state.phase = phase;
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until a start has come to something: the SR attached, or why not.
    pub(crate) fn wait_started(&self) -> Result<(), Failure> {
        let state = self.lock();
        let state = self.changed.wait_while(state, |state| state.phase == Phase::Starting);
        let state = state.unwrap_or_else(PoisonError::into_inner).clone();
        match (state.phase, state.error) {
            (Phase::Attached, _) => Ok(()),
            (Phase::Failed, Some(error)) => Err(error),
            (phase, error) => Err(self.unavailable(phase, error)),
        }
    }

    /// Ends the keeper in order, with `SR.detach` or `SR.destroy`, and waits until it has ended. Means nothing for an SR
    /// without a keeper. The result is the keeper's; a keeper that dies over it is an error of its own.
    pub(crate) fn stop(&self, method: &str, params: Value) -> Result<(), CallError> {
        let mut state = self.lock();
        let before = state.phase;
        state.phase = before.after(Happening::Stop);
        (state.error, state.away) = (None, None);
        let tried = state.link.clone();
        self.changed.notify_all();
        drop(state);
        let link = match before {
            Phase::Starting | Phase::Attached => {
                self.wait_while(MOMENT, |state| state.phase == Phase::Stopping && state.link.is_none()).link
            }
            Phase::Failed => {
                if let Some(link) = tried {
                    link.close();
                }
                self.wait_while(MOMENT, |state| state.supervised);
                None
            }
            Phase::Detached | Phase::Waiting | Phase::Stopping => None,
        };
        let Some(link) = link else { return Ok(()) };
        let outcome = link.call(method, params, Vec::new(), None);
        if let Err(CallError::Refused(_) | CallError::Silent) = outcome {
            self.happened(Happening::StopRefused);
            return outcome.map(drop);
        }
        if !link.wait_ended(Some(MOMENT)) {
            link.close();
        }
        self.wait_while(MOMENT, |state| state.phase == Phase::Stopping);
        outcome.map(drop)
    }

    /// The thread of an SR that is meant to be attached.
    fn supervise(&self, starter: &Starter, keeper: Option<Keeper>) {
        let (mut deaths, mut refusals) = (0, 0);
        let mut running = keeper;
        loop {
            let born = Instant::now();
            match running.take() {
                Some(keeper) => self.watch(keeper, Happening::Died),
                None => self.attach_and_watch(starter),
            }
            deaths = deaths_in_a_row(deaths, born.elapsed());
            refusals = if self.lock().phase == Phase::Failed { refusals + 1 } else { 0 };
            if !self.is_wanted_after(pause(deaths), rest(refusals)) {
                return;
            }
        }
    }

    fn attach_and_watch(&self, starter: &Starter) {
        let entry = self.entry();
        let (take_over, away) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.take_over), state.away.clone())
        };
        let (is_first, away) =
            (away.is_none(), away.map(|(since, why)| Away { seconds: since.elapsed().as_secs(), why }));
        let (keeper, started) = match starter.start(&entry, Vec::new()) {
            Ok(started) => started,
            Err(failure) => {
                tracing::error!(sr = %entry.uuid, %failure, "no keeper");
                self.lock().error = Some(failure.retry());
                return self.happened(Happening::Died);
            }
        };
        if is_first {
            tracing::info!(sr = %entry.uuid, pid = keeper.pid, "keeper started");
        }
        let params = json!(KeeperAttach { take_over, away });
        let first = keeper.link.begin("SR.attach", params, Vec::new());
        // Only now may clients' requests follow: a keeper that was not told to attach refuses them for good.
        self.publish(&keeper);
        if self.lock().phase == Phase::Detached {
            // Nobody has waited for this try, and nobody wants it any more.
            keeper.link.close();
        }
        let attached = first.and_then(|first| started.wait(None).and_then(|_| first.wait(None)));
        let end = match attached {
            Ok(_) => {
                tracing::info!(sr = %entry.uuid, "attached");
                self.happened(Happening::Attached);
                Happening::Died
            }
            Err(CallError::Refused(failure)) => {
                self.refused(failure);
                keeper.link.close();
                Happening::Refused
            }
            Err(_) => Happening::Died,
        };
        self.watch(keeper, end);
    }

    /// Keeps why it is not attached.
    fn refused(&self, mut failure: Failure) {
        let uuid = self.uuid();
        let mut state = self.lock();
        if failure.retry && state.away.is_some() {
            tracing::debug!(sr = %uuid, %failure, "still not attached");
        } else {
            tracing::error!(sr = %uuid, %failure, may_pass = failure.retry, "not attached");
        }
        if failure.retry {
            let why = failure.message.clone();
            state.away.get_or_insert_with(|| (Instant::now(), why));
            let next = format!("it is tried again by itself; at once with: catena sr attach {uuid}");
            failure.hint = if failure.hint.is_empty() { next } else { format!("{}; {next}", failure.hint) };
        } else {
            state.away = None;
        }
        state.error = Some(failure);
    }

    /// Waits for the end of the keeper, then tells it as `end`: so a successor never meets its predecessor.
    fn watch(&self, keeper: Keeper, end: Happening) {
        keeper.link.wait_ended(None);
        self.lock().link = None;
        keeper.end();
        self.lock().keeper_pid = None;
        self.happened(end);
    }

    /// Waits out the pause before a restart, or the rest before another try; false, and the end of the supervision, where no keeper is
    /// wanted.
    fn is_wanted_after(&self, pause: Duration, rest: Duration) -> bool {
        let mut state = self.lock();
        if state.phase == Phase::Waiting {
            tracing::warn!(sr = %self.uuid(), seconds = pause.as_secs_f32(), "the keeper ended; restart");
            let waited = self.changed.wait_timeout_while(state, pause, |state| state.phase == Phase::Waiting);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.phase == Phase::Waiting {
                state.phase = state.phase.after(Happening::Start);
                state.restarts += 1;
            }
        }
        if state.is_to_be_tried() {
            let waited = self.changed.wait_timeout_while(state, rest, |state| state.phase == Phase::Failed);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.supervised = state.phase == Phase::Starting || state.is_to_be_tried();
        self.changed.notify_all();
        state.supervised
    }

    fn publish(&self, keeper: &Keeper) {
        let mut state = self.lock();
        state.link = Some(Arc::clone(&keeper.link));
        state.keeper_pid = keeper.pid;
        self.changed.notify_all();
    }

    fn happened(&self, happening: Happening) {
        let mut state = self.lock();
        state.phase = state.phase.after(happening);
        if state.phase == Phase::Attached {
            (state.error, state.away) = (None, None);
        }
        self.changed.notify_all();
    }

    /// The state once `busy` no longer holds, or as it is after `limit`.
    fn wait_while(&self, limit: Duration, busy: impl Fn(&State) -> bool) -> State {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |state| busy(state));
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The SR is failed for a reason that may pass.
    fn is_to_be_tried(&self) -> bool {
        self.phase == Phase::Failed && self.error.as_ref().is_some_and(|error| error.retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, attached, detached, starter};

    /// Waits until the SR is in that phase.
    fn until(sr: &Sr, phase: Phase) -> State {
        let state = sr.wait_while(Duration::from_secs(60), |state| state.phase != phase);
        assert_eq!(state.phase, phase);
        state
    }

    #[test]
    fn a_keeper_that_dies_is_replaced() {
        let (first, second) = (Script::new().die("SR.scan"), Script::new());
        let sr = detached("a");
        sr.start(&starter([first.clone(), second.clone()]), true).unwrap();
        sr.wait_started().unwrap();
        let died = sr.link().unwrap().call("SR.scan", json!({}), Vec::new(), None).unwrap_err();
        let failure = sr.failure(died);
        assert!(failure.retry && failure.message.contains("unknown"), "{failure}");
        assert_eq!(sr.wait_while(Duration::from_secs(60), |state| state.restarts == 0).restarts, 1);
        until(&sr, Phase::Attached);
        assert_eq!(first.methods(), ["Keeper.start", "SR.attach", "SR.scan"]);
        assert_eq!(second.methods(), ["Keeper.start", "SR.attach"]);
        // A take-over is asked for once, not by every restart.
        assert_eq!(first.calls()[1].params["take_over"], true);
        assert_eq!(second.calls()[1].params["take_over"], false);
    }

    #[test]
    fn a_refusal_is_final_until_somebody_asks_again() {
        let refusing = Script::new().refuse("SR.attach", Failure::new(ErrorName::SrInUse, "elsewhere"));
        let willing = Script::new();
        let (sr, starter) = (detached("a"), starter([refusing.clone(), willing.clone()]));
        sr.start(&starter, false).unwrap();
        assert_eq!(sr.wait_started().unwrap_err().name, ErrorName::SrInUse);
        assert_eq!(sr.state().phase, Phase::Failed);
        let failure = sr.link().unwrap_err();
        assert!(
            failure.name == ErrorName::SrUnavailable && failure.message.contains("elsewhere"),
            "{failure}"
        );
        sr.start(&starter, false).unwrap();
        sr.wait_started().unwrap();
        assert_eq!((refusing.calls().len(), willing.calls().len()), (2, 2));
        assert_eq!(sr.state().error, None);
    }

    fn gone() -> Script {
        Script::new().refuse("SR.attach", Failure::new(ErrorName::SrUnavailable, "no such device").retry())
    }

    #[test]
    fn a_refusal_that_may_pass_is_tried_again_and_nobody_waits_for_that() {
        let (first, second, willing) = (gone(), gone().die("SR.attach"), Script::new());
        let sr = detached("a");
        sr.start(&starter([first, second, willing.clone()]), false).unwrap();
        let failure = sr.wait_started().unwrap_err();
        assert!(failure.retry && failure.hint.contains("tried again"), "{failure:?}");
        assert_eq!(sr.state().phase, Phase::Failed);
        let failure = sr.link().unwrap_err();
        assert!(failure.retry && failure.message.contains("no such device"), "{failure:?}");
        until(&sr, Phase::Attached);
        assert_eq!(willing.calls()[1].params["away"]["why"], "no such device");
        let state = sr.state();
        assert!(state.error.is_none() && state.away.is_none() && state.restarts == 0, "{state:?}");
        sr.link().unwrap();
    }

    #[test]
    fn who_asks_does_not_wait_for_the_rest_and_may_take_over() {
        let (script, willing) = (gone(), Script::new());
        let (sr, starter) = (detached("a"), starter([script.clone(), willing.clone()]));
        sr.start(&starter, false).unwrap();
        sr.wait_started().unwrap_err();
        sr.start(&starter, true).unwrap();
        sr.wait_started().unwrap();
        assert_eq!((script.methods().len(), &willing.calls()[1].params["take_over"]), (2, &json!(true)));
    }

    #[test]
    fn an_sr_that_is_tried_again_can_be_detached_also_in_the_middle_of_a_try() {
        let (sr, hanging) = (detached("a"), gone().ignore("SR.attach"));
        let starter = starter([gone(), hanging.clone()]);
        sr.start(&starter, false).unwrap();
        sr.wait_started().unwrap_err();
        sr.wait_while(Duration::from_secs(60), |state| state.link.is_none());
        assert_eq!(sr.link().unwrap_err().name, ErrorName::SrUnavailable);
        sr.stop("SR.detach", json!({})).unwrap();
        let state = sr.state();
        assert!(state.phase == Phase::Detached && !state.supervised && state.link.is_none(), "{state:?}");
        assert!(!hanging.methods().contains(&"SR.detach".to_owned()));
    }

    #[test]
    fn an_sr_whose_keepers_die_can_be_detached() {
        let dying = Script::new().die("SR.attach");
        let sr = detached("a");
        sr.start(&starter([dying]), false).unwrap();
        assert!(sr.wait_started().unwrap_err().retry);
        sr.stop("SR.detach", json!({})).ok();
        until(&sr, Phase::Detached);
        assert_eq!(sr.wait_while(Duration::from_secs(60), |state| state.supervised).phase, Phase::Detached);
    }

    #[test]
    fn a_keeper_that_refuses_to_end_goes_on() {
        let script = Script::new().refuse("SR.detach", Failure::new(ErrorName::SrInUse, "busy"));
        let sr = attached("a", script);
        assert!(matches!(sr.stop("SR.detach", json!({})), Err(CallError::Refused(_))));
        assert_eq!(sr.state().phase, Phase::Attached);
        sr.link().unwrap().call("SR.stat", json!({}), Vec::new(), None).unwrap();
    }

    #[test]
    fn however_fast_starts_follow_stops_there_is_one_keeper_at_a_time() {
        let script = Script::new();
        let (sr, starter) = (detached("a"), starter([script.clone()]));
        for _ in 0..100 {
            sr.start(&starter, false).unwrap();
            sr.wait_started().unwrap();
            sr.stop("SR.detach", json!({})).unwrap();
            assert_eq!(sr.state().phase, Phase::Detached);
        }
        let round = ["Keeper.start", "SR.attach", "SR.detach"];
        assert_eq!(script.methods(), round.repeat(100));
    }
}
