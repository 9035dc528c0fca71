//! `VDI.copy`: within an SR its keeper does it.

use crate::front::{Front, Params, is_given, relay, repeated, text};
use crate::{resolve, routes};
use catena_rpc::Outcome;
use catena_types::{ErrorName, Failure};
use serde_json::json;

impl Front {
    /// Copies a VDI; answers with the job.
    pub(crate) fn copy(&self, mut params: Params) -> Outcome {
        let method = routes::find("VDI.copy").ok_or_else(unknown)?;
        let all = self.table.all();
        let (home, uuid) = match resolve::vdi(&all, text(&params, "vdi")?) {
            Err(missing) if missing.name == ErrorName::VdiMissing && is_given(&params, "request_id") => {
                return repeated(&all, method, &params).ok_or(missing);
            }
            found => found?,
        };
        params.insert("vdi".to_owned(), json!(uuid));
        if is_given(&params, "sr") && self.named_sr(&mut params)?.uuid() != home.uuid() {
            let text = "a disk is copied within its SR only";
            return Err(Failure::new(ErrorName::Unsupported, text)
                .hint("export it to a file, and import that into the other SR"));
        }
        relay(&home, method, params, Vec::new())
    }
}

fn unknown() -> Failure {
    Failure::new(ErrorName::Unsupported, "no such method")
}
