//! The wire described for programs: a JSON Schema of every method's parameters and answer, of every document, of events and
//! errors. `Agent.schema` and `catena generate schema` print it.
//!
//! A method that the table below lacks, or that the agent does not have, fails a test of `catena-agent`. Documents may have
//! more fields than their schema names; parameters may not.

use crate::answers::{
    AgentStats, Attached, CoalesceList, Destroyed, Done, ErrorDocument, EventList, Introduced, Introduction,
    JobList, Made, MadeVdis, Moved, Resized, RpcError, ScanReport, SrList, SrPolicy, SrProbed, Survey, Tree,
    VdiList, Version,
};
use crate::params::{
    CoalesceParams, EventListParams, JobParams, ListParams, NoParams, ReadWriteParams, SrCreateParams,
    SrIntroduceParams, SrParams, SrPolicyParams, SrProbeParams, VdiAttachParams, VdiCloneParams,
    VdiCopyParams, VdiCreateParams, VdiExportParams, VdiImportParams, VdiParams, VdiResizeParams,
    VdiRevertParams, VdiSetParams, VdiSnapshotParams,
};
use crate::{
    CheckReport, CoalesceStatus, Event, GrowReport, Job, SCHEMA_VERSION, Sr, SrCheckParams, SrGrowParams,
    TrimReport, Vdi,
};
use catena_types::{ErrorName, Failure, SrUuid, VdiUuid};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Notes a type and says how to refer to it.
type Describe = fn(&mut SchemaGenerator) -> Schema;

/// A method as the schema has it.
struct Method {
    name: &'static str,
    params: Describe,
    read: fn(&Value) -> serde_json::Result<()>,
    answer: Describe,
    /// What the job has for `result` once it is done, where the answer is a job.
    result: Option<Describe>,
}

fn describe<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn read<P: DeserializeOwned>(params: &Value) -> serde_json::Result<()> {
    P::deserialize(params).map(drop)
}

/// A method that is answered at once.
const fn at_once<P: JsonSchema + DeserializeOwned, A: JsonSchema>(name: &'static str) -> Method {
    Method { name, params: describe::<P>, read: read::<P>, answer: describe::<A>, result: None }
}

/// A method that is answered with a job.
const fn by_job<P: JsonSchema + DeserializeOwned, R: JsonSchema>(name: &'static str) -> Method {
    let result: Option<Describe> = Some(describe::<R>);
    Method { name, params: describe::<P>, read: read::<P>, answer: describe::<Job>, result }
}

const METHODS: &[Method] = &[
    at_once::<NoParams, Version>("Agent.version"),
    at_once::<NoParams, AnyDocument>("Agent.schema"),
    at_once::<NoParams, AgentStats>("Agent.stats"),
    at_once::<SrCreateParams, Made<SrUuid>>("SR.create"),
    Method { answer: describe::<Introduction>, ..by_job::<SrIntroduceParams, Introduced>("SR.introduce") },
    at_once::<SrProbeParams, SrProbed>("SR.probe"),
    at_once::<SrParams, Done>("SR.attach"),
    at_once::<SrParams, Done>("SR.detach"),
    at_once::<SrParams, Done>("SR.forget"),
    at_once::<SrParams, Done>("SR.destroy"),
    at_once::<ListParams, SrList>("SR.list"),
    at_once::<SrParams, Sr>("SR.get_record"),
    at_once::<SrParams, Sr>("SR.stat"),
    at_once::<SrPolicyParams, SrPolicy>("SR.set_policy"),
    by_job::<SrParams, ScanReport>("SR.scan"),
    by_job::<SrCheckParams, CheckReport>("SR.check"),
    by_job::<SrParams, TrimReport>("SR.trim"),
    by_job::<SrGrowParams, GrowReport>("SR.grow"),
    at_once::<VdiCreateParams, Made<VdiUuid>>("VDI.create"),
    by_job::<VdiImportParams, Made<VdiUuid>>("VDI.import"),
    at_once::<ListParams, VdiList>("VDI.list"),
    at_once::<ListParams, Tree>("VDI.get_tree"),
    at_once::<VdiParams, Vdi>("VDI.get_record"),
    at_once::<VdiAttachParams, Attached>("VDI.attach"),
    at_once::<VdiParams, Done>("VDI.detach"),
    at_once::<VdiSnapshotParams, MadeVdis>("VDI.snapshot"),
    at_once::<VdiCloneParams, MadeVdis>("VDI.clone"),
    at_once::<VdiRevertParams, Done>("VDI.revert"),
    at_once::<VdiResizeParams, Resized>("VDI.resize"),
    at_once::<VdiSetParams, Done>("VDI.set"),
    by_job::<VdiCopyParams, Made<VdiUuid>>("VDI.copy"),
    at_once::<VdiParams, Done>("VDI.destroy"),
    by_job::<VdiExportParams, Moved>("VDI.export"),
    at_once::<ReadWriteParams, Moved>("VDI.read"),
    at_once::<ReadWriteParams, Moved>("VDI.write"),
    at_once::<ListParams, CoalesceList>("Coalesce.status"),
    at_once::<CoalesceParams, CoalesceStatus>("Coalesce.run"),
    at_once::<CoalesceParams, CoalesceStatus>("Coalesce.pause"),
    at_once::<CoalesceParams, CoalesceStatus>("Coalesce.resume"),
    at_once::<ListParams, JobList>("Job.list"),
    at_once::<JobParams, Job>("Job.get"),
    at_once::<JobParams, Job>("Job.wait"),
    at_once::<JobParams, Job>("Job.cancel"),
    at_once::<EventListParams, EventList>("Event.list"),
    at_once::<NoParams, Done>("Event.subscribe"),
];

/// Documents that no method answers with: what else the wire and the command line bring.
const DOCUMENTS: &[(&str, Describe)] = &[
    ("event", describe::<Event>),
    ("error", describe::<RpcError>),
    ("error_document", describe::<ErrorDocument>),
    ("survey", describe::<Survey>),
    ("destroyed", describe::<Destroyed>),
];

/// Any object: the schema itself.
type AnyDocument = Map<String, Value>;

/// Refuses parameters that are not those of the method: missing, unknown, of another type.
///
/// # Errors
/// A `bad_request` that says which.
pub fn check_params(method: &str, params: &Value) -> Result<(), Failure> {
    let Some(method) = METHODS.iter().find(|known| known.name == method) else { return Ok(()) };
    (method.read)(params).map_err(|error| {
        Failure::new(ErrorName::BadRequest, format!("parameters of {}: {error}", method.name))
            .hint("`Agent.schema` describes them")
    })
}

/// The names of all methods that the schema describes.
pub fn methods() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|method| method.name)
}

/// The whole: `methods.<name>.{params, answer, result}` and `documents.<name>`, all of them references into `$defs`.
pub fn schema() -> Value {
    // What clients send may leave out what has a default; what they get has all fields.
    let mut sent = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let mut got = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut methods = Map::new();
    for method in METHODS {
        let mut entry = json!({"params": (method.params)(&mut sent), "answer": (method.answer)(&mut got)});
        if let Some(result) = method.result {
            entry["result"] = json!(result(&mut got));
        }
        methods.insert(method.name.to_owned(), entry);
    }
    let documents: Map<String, Value> =
        DOCUMENTS.iter().map(|(name, describe)| ((*name).to_owned(), json!(describe(&mut got)))).collect();
    let mut definitions = sent.take_definitions(true);
    definitions.append(&mut got.take_definitions(true));
    json!({
        "schema_version": SCHEMA_VERSION,
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "methods": methods,
        "documents": documents,
        "$defs": definitions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All references of a schema.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get("$ref") {
                    found.push(to.clone());
                }
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_fits_a_line_of_the_wire() {
        let schema = schema();
        let mut found = Vec::new();
        references(&schema, &mut found);
        assert!(found.len() > METHODS.len());
        for reference in found {
            let at = reference.strip_prefix('#').unwrap();
            assert!(schema.pointer(at).is_some(), "{reference}");
        }
        assert!(schema.to_string().len() < crate::LINE_LIMIT / 2);
    }

    #[test]
    fn documents_have_all_fields_and_parameters_leave_defaults_out() {
        let schema = schema();
        let required = |name: &str| schema["$defs"][name]["required"].to_string();
        assert!(required("Sr").contains("\"error\""));
        assert!(required("VdiCreateParams").contains("\"virtual_size\""));
        assert!(!required("VdiCreateParams").contains("\"name_label\""));
    }
}
