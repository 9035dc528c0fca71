//! The table of methods: where each goes, who may call it, how long its answer may take. Nothing else lists methods.

use std::time::Duration;

/// How long a keeper may take for what it answers from memory, before it is reported as silent.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Who answers a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// The front itself.
    Front(Own),
    /// The keeper of the SR that `sr` names.
    Sr,
    /// The keeper that knows the VDI that `vdi` names, or all that it names.
    Vdi,
    /// The keeper that the id in `job` names.
    Job,
    /// The keeper of `vdi` or `sr` where given; else all, and their arrays of this name are merged.
    All(&'static str),
}

/// What the front answers itself, asking keepers where it has to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    /// `Agent.version`.
    Version,
    /// `Agent.schema`.
    Schema,
    /// `Agent.stats`.
    Stats,
    /// `Event.subscribe`.
    Subscribe,
    /// `SR.list`.
    SrList,
    /// `SR.get_record`.
    SrRecord,
    /// `SR.create`.
    SrCreate,
    /// `SR.introduce`.
    SrIntroduce,
    /// `SR.probe`.
    SrProbe,
    /// `SR.attach`.
    SrAttach,
    /// `SR.detach`.
    SrDetach,
    /// `SR.forget`.
    SrForget,
    /// `SR.destroy`.
    SrDestroy,
    /// `SR.grow`.
    SrGrow,
    /// `VDI.copy`.
    VdiCopy,
}

/// A method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Method {
    /// Its name on the wire.
    pub(crate) name: &'static str,
    /// Who answers.
    pub(crate) route: Route,
    /// Whether readers may call it.
    pub(crate) for_readers: bool,
    /// How long a keeper may take; `None` is as long as it wants.
    pub(crate) patience: Option<Duration>,
}

/// A look at what a keeper has in memory.
const fn look(name: &'static str, route: Route) -> Method {
    Method { name, route, for_readers: true, patience: Some(PATIENCE) }
}

/// A change, or a disclosure of what disks hold: not for readers.
const fn act(name: &'static str, route: Route) -> Method {
    Method { name, route, for_readers: false, patience: None }
}

/// Every method.
pub(crate) const METHODS: &[Method] = &[
    look("Agent.version", Route::Front(Own::Version)),
    look("Agent.schema", Route::Front(Own::Schema)),
    look("Agent.stats", Route::Front(Own::Stats)),
    act("SR.create", Route::Front(Own::SrCreate)),
    act("SR.introduce", Route::Front(Own::SrIntroduce)),
    act("SR.probe", Route::Front(Own::SrProbe)),
    act("SR.attach", Route::Front(Own::SrAttach)),
    act("SR.detach", Route::Front(Own::SrDetach)),
    act("SR.forget", Route::Front(Own::SrForget)),
    act("SR.destroy", Route::Front(Own::SrDestroy)),
    look("SR.list", Route::Front(Own::SrList)),
    look("SR.get_record", Route::Front(Own::SrRecord)),
    look("SR.stat", Route::Sr),
    act("SR.set_policy", Route::Sr),
    act("SR.scan", Route::Sr),
    act("SR.check", Route::Sr),
    act("SR.trim", Route::Sr),
    act("SR.grow", Route::Front(Own::SrGrow)),
    act("VDI.create", Route::Sr),
    act("VDI.import", Route::Sr),
    look("VDI.list", Route::All("vdis")),
    look("VDI.get_tree", Route::All("roots")),
    look("VDI.get_record", Route::Vdi),
    act("VDI.attach", Route::Vdi),
    act("VDI.detach", Route::Vdi),
    act("VDI.snapshot", Route::Vdi),
    act("VDI.clone", Route::Vdi),
    act("VDI.revert", Route::Vdi),
    act("VDI.resize", Route::Vdi),
    act("VDI.set", Route::Vdi),
    act("VDI.copy", Route::Front(Own::VdiCopy)),
    act("VDI.destroy", Route::Vdi),
    act("VDI.export", Route::Vdi),
    act("VDI.read", Route::Vdi),
    act("VDI.write", Route::Vdi),
    look("Coalesce.status", Route::All("srs")),
    act("Coalesce.run", Route::Sr),
    act("Coalesce.pause", Route::Sr),
    act("Coalesce.resume", Route::Sr),
    look("Job.list", Route::All("jobs")),
    look("Job.get", Route::Job),
    Method { name: "Job.wait", route: Route::Job, for_readers: true, patience: None },
    act("Job.cancel", Route::Job),
    look("Event.list", Route::All("events")),
    look("Event.subscribe", Route::Front(Own::Subscribe)),
];

/// The method of that name.
pub(crate) fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_is_listed_once() {
        let names: BTreeSet<_> = METHODS.iter().map(|method| method.name).collect();
        assert_eq!(names.len(), METHODS.len());
        assert!(METHODS.iter().all(|method| find(method.name) == Some(method)));
        assert_eq!(find("SR.unmake"), None);
    }

    #[test]
    fn the_schema_describes_every_method_and_no_other() {
        let described: BTreeSet<_> = catena_rpc::methods().collect();
        let routed: BTreeSet<_> = METHODS.iter().map(|method| method.name).collect();
        assert_eq!(described, routed, "src/rpc/src/schema.rs and this table");
    }

    #[test]
    fn readers_only_look() {
        let words = [
            "schema",
            "list",
            "get",
            "stat",
            "status",
            "record",
            "tree",
            "version",
            "stats",
            "subscribe",
            "wait",
        ];
        for method in METHODS.iter().filter(|method| method.for_readers) {
            let verb = method.name.split(['.', '_']).next_back().unwrap();
            assert!(words.contains(&verb), "{}", method.name);
        }
    }
}
