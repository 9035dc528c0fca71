//! The policy of the SR: set, shown, and applied to the merge that runs.
//!
//! A change is one commit and takes effect at once: a running merge is told over its worker's channel, or stopped where the
//! policy forbids it. A merge in class idle that falls behind the floor is raised, so that a busy guest cannot starve it.

use crate::dispatch::params;
use crate::failures::bad_request;
use crate::owner::{Call, Given, Owner};
use crate::standstill::{Standstill, standstill};
use catena_catalog::{Change, Meta};
use catena_coalesce::{Starvation, Verdict};
use catena_control::Pace;
use catena_rpc::SrPolicyParams;
use catena_types::{Allocation, Bytes, ErrorName, Failure, IoClass, Policy, Severity};
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The merge that runs, as far as its priority goes.
#[derive(Debug)]
pub(crate) struct Priority {
    begun: Instant,
    done: Bytes,
    floor: Bytes,
    starvation: Starvation,
    /// What the mover was told.
    told: Pace,
}

impl Priority {
    /// Of a merge that begins now, and is told [`Self::pace`] with its first message.
    pub(crate) fn new(policy: &Policy) -> Self {
        let floor = floor_of(policy);
        let starvation = Starvation::new(floor, Duration::ZERO, Bytes(0));
        let told = Pace { class: policy.io_class, rate: policy.rate };
        Self { begun: Instant::now(), done: Bytes(0), floor, starvation, told }
    }

    /// Another policy from now on. With another floor, what it owed is forgotten.
    fn adopt(&mut self, policy: &Policy) {
        let floor = floor_of(policy);
        if floor != self.floor {
            self.floor = floor;
            self.starvation = Starvation::new(floor, self.begun.elapsed(), self.done);
        }
    }

    /// How the merge is to go on under this policy.
    pub(crate) const fn pace(&self, policy: &Policy) -> Pace {
        let class = if self.starvation.is_raised() { IoClass::LEAST_EFFORT } else { policy.io_class };
        Pace { class, rate: policy.rate }
    }

    /// When it must be looked at if it says nothing until then.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.starvation.deadline().map(|after| self.begun + after)
    }
}

/// The floor that a merge is held to: only class idle can starve.
fn floor_of(policy: &Policy) -> Bytes {
    if policy.io_class == IoClass::Idle { policy.reachable_floor() } else { Bytes(0) }
}

impl Owner {
    /// The policy as it is stored.
    pub(crate) fn policy(&self) -> Policy {
        Policy::stored(&self.catalog.state().meta.other)
    }

    /// Why nothing may begin now.
    pub(crate) fn standstill(&self) -> Option<Standstill> {
        standstill(&self.catalog.state().meta, &Zoned::now())
    }

    /// `SR.set_policy`; without keys it only says what there is. All keys are set, or none.
    pub(crate) fn sr_set_policy(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: SrPolicyParams = params(&call.request)?;
        let (old, mut policy) = (self.policy(), self.policy());
        let mut meta = (*self.catalog.state().meta).clone();
        let mut said = Vec::new();
        for (key, value) in &asked.policy {
            policy.set(key, &text(value)).map_err(|error| bad_request(error).hint(allowed(key)))?;
        }
        if policy.allocation != Allocation::Thin && !self.is_sized() {
            return Err(only_thin());
        }
        for (key, _) in Policy::KEYS.iter().filter(|(key, _)| asked.policy.contains_key(*key)) {
            let (before, after) = (old.get(key), policy.get(key).unwrap_or_default());
            said.push(format!("{key}={after} (was {})", before.unwrap_or_default()));
            meta.other.insert((*key).to_owned(), after);
        }
        if !said.is_empty() {
            let event = self.event(Severity::Info, "policy.changed", None, None, said.join(", "));
            self.commit(vec![Change::PutMeta(meta), event])?;
            self.apply_policy();
            // Stops what the new policy forbids, and starts what the old one did.
            self.coalesce();
        }
        Ok(Given::Answer(json!({"sr": self.sr.uuid, "policy": policy})))
    }

    /// The running merge learns of a new policy.
    fn apply_policy(&mut self) {
        let policy = self.policy();
        if let Some(priority) = &mut self.priority {
            priority.adopt(&policy);
        }
        self.tell_pace();
        self.tell_watermarks();
        if let Some(Err(error)) = self.sr.group.as_ref().map(|group| group.weigh(policy.weight)) {
            tracing::warn!(sr = %self.sr.uuid, %error, "the weight of merges could not be changed");
        }
    }

    /// Tells the mover its pace, if that has changed. One that cannot hear it now is told again: it has mail for us first.
    pub(crate) fn tell_pace(&mut self) {
        let policy = self.policy();
        let mover = self.current.and_then(|current| self.running.get(&current.job));
        if let (Some(priority), Some(mover)) = (&mut self.priority, mover) {
            let pace = priority.pace(&policy);
            if pace != priority.told && mover.long.pace(pace) {
                priority.told = pace;
            }
        }
    }

    /// Looks whether the running merge keeps to its floor; `done` is what it has moved, if it has just said so.
    pub(crate) fn watch_floor(&mut self, done: Option<Bytes>) {
        let Some(priority) = &mut self.priority else { return };
        priority.done = done.unwrap_or(priority.done);
        let Some(verdict) = priority.starvation.observe(priority.begun.elapsed(), priority.done) else {
            return;
        };
        let floor = priority.floor;
        self.tell_pace();
        let (severity, kind, text) = match verdict {
            Verdict::Raise => {
                let text = format!(
                    "below the floor of {floor}/s in class idle: raised to {}",
                    IoClass::LEAST_EFFORT
                );
                (Severity::Warning, "merge.starved", text)
            }
            Verdict::Lower => (
                Severity::Info,
                "merge.recovered",
                format!("the floor of {floor}/s is met: back to class idle"),
            ),
        };
        let job = self.current.and_then(|current| self.catalog.state().jobs.get(&current.job).cloned());
        let event = self.event(severity, kind, None, job.as_deref(), text);
        if let Err(failure) = self.commit(vec![event]) {
            tracing::error!(sr = %self.sr.uuid, %failure, "a change of priority could not be recorded");
        }
    }

    /// Ends a pause whose time has come, so that everybody sees that it has.
    pub(crate) fn end_pause(&mut self) {
        let meta = &self.catalog.state().meta;
        if !meta.coalesce_paused || meta.paused_until.is_none_or(|until| until > Timestamp::now()) {
            return;
        }
        let meta = Meta { coalesce_paused: false, paused_until: None, ..(**meta).clone() };
        let event = self.event(Severity::Info, "coalesce.resumed", None, None, "the pause is over");
        if let Err(failure) = self.commit(vec![Change::PutMeta(meta), event]) {
            tracing::error!(sr = %self.sr.uuid, %failure, "the end of a pause could not be recorded");
        }
    }
}

/// Storage whose containers grow by themselves has nothing to be thick with.
pub(crate) fn only_thin() -> Failure {
    Failure::new(ErrorName::Unsupported, "file SRs are thin")
}

/// A value as it may come over the wire.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn allowed(key: &str) -> String {
    let one = Policy::KEYS.iter().find(|(name, _)| *name == key);
    one.map_or_else(
        || "`catena sr policy SR` shows them".to_owned(),
        |(name, values)| format!("{name} is {values}"),
    )
}
