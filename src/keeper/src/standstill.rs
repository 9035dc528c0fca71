//! Why the coalesce worker as a whole may not begin anything now: an administrator's word or the hours of the policy.
//!
//! Pure. Asked by the owner before it starts a task and while one runs, and by the views.

use catena_catalog::Meta;
use catena_coalesce::Task;
use catena_rpc::CoalesceState;
use catena_types::{ErrorName, Failure, Policy};
use jiff::{Timestamp, Zoned};

/// What stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standstill {
    /// The policy has it off.
    Disabled,
    /// Paused by an administrator.
    Paused {
        /// When that ends by itself.
        until: Option<Timestamp>,
    },
    /// Outside the policy's hours.
    Window {
        /// When they begin.
        opens: Option<Timestamp>,
    },
}

/// The worker's standstill now, if any. What only an administrator can end comes first.
pub(crate) fn standstill(meta: &Meta, now: &Zoned) -> Option<Standstill> {
    let policy = Policy::stored(&meta.other);
    if !policy.enabled {
        Some(Standstill::Disabled)
    } else if meta.coalesce_paused && meta.paused_until.is_none_or(|until| until > now.timestamp()) {
        Some(Standstill::Paused { until: meta.paused_until })
    } else if !policy.window.is_open(now) {
        Some(Standstill::Window { opens: policy.window.next_change(now) })
    } else {
        None
    }
}

impl Standstill {
    /// Whether the task may begin all the same. Only a pause keeps what nothing needs any more: a directory that was taken over
    /// begins with one, and nothing in it is touched until an administrator says so.
    pub(crate) const fn allows(self, task: Task) -> bool {
        matches!(task, Task::Remove { .. }) && !matches!(self, Self::Paused { .. })
    }

    /// The state that clients see.
    pub(crate) const fn state(self) -> CoalesceState {
        match self {
            Self::Disabled | Self::Paused { .. } => CoalesceState::Paused,
            Self::Window { .. } => CoalesceState::Blocked,
        }
    }

    /// The code of the reason.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Paused { .. } => "paused",
            Self::Window { .. } => "window",
        }
    }

    /// The reason for people.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Disabled => "coalesce.enabled is false; `catena sr policy` changes it".to_owned(),
            Self::Paused { until: None } => "paused; `catena coalesce resume` goes on".to_owned(),
            Self::Paused { until: Some(until) } => {
                format!("paused until {until:.0}; `catena coalesce resume` goes on before")
            }
            Self::Window { opens: Some(opens) } => {
                format!("outside of coalesce.window, which opens at {opens:.0}")
            }
            Self::Window { opens: None } => "outside of coalesce.window".to_owned(),
        }
    }

    /// What a caller is told who would wait for the worker.
    pub(crate) fn failure(self) -> Failure {
        let hint = match self {
            Self::Paused { .. } => "`catena coalesce resume` goes on",
            Self::Disabled | Self::Window { .. } => "`catena sr policy` changes it",
        };
        let text = self.text();
        let message = text.split("; `").next().unwrap_or_default();
        Failure::new(ErrorName::TryAgain, format!("coalescing of this SR rests: {message}")).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_types::SrUuid;
    use std::collections::BTreeMap;

    #[test]
    fn each_reason_is_told_apart_and_ends_by_itself_where_it_should() {
        let now: Zoned = "2030-01-31T12:00:00+00:00[UTC]".parse().unwrap();
        let meta = |paused, until: Option<&str>, other: &[(&str, &str)]| Meta {
            sr: SrUuid(uuid::Uuid::nil()),
            name_label: String::new(),
            name_description: String::new(),
            created: now.timestamp(),
            coalesce_paused: paused,
            paused_until: until.map(|text| text.parse().unwrap()),
            other: other
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>(),
        };
        let code = |meta: &Meta| standstill(meta, &now).map(Standstill::code);
        assert_eq!(code(&meta(false, None, &[])), None);
        assert_eq!(code(&meta(true, None, &[])), Some("paused"));
        assert_eq!(code(&meta(true, Some("2030-01-31T12:00:01Z"), &[])), Some("paused"));
        assert_eq!(code(&meta(true, Some("2030-01-31T12:00:00Z"), &[])), None);
        assert_eq!(code(&meta(false, None, &[("coalesce.window", "13:00-14:00")])), Some("window"));
        assert_eq!(code(&meta(true, None, &[("coalesce.window", "13:00-14:00")])), Some("paused"));
        assert_eq!(code(&meta(true, None, &[("coalesce.enabled", "false")])), Some("disabled"));
        assert_eq!(code(&meta(false, None, &[("coalesce.window", "11:00-14:00")])), None);
    }
}
