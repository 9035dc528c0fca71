//! Disks that are served: `VDI.attach` and `VDI.detach`.
//!
//! Called by `dispatch`.

use crate::dispatch::params;
use crate::lookup::vdi_uuid;
use crate::owner::{Call, Given, Owner};
use catena_rpc::{VdiAttachParams, VdiParams};
use catena_types::{ErrorName, Failure};

impl Owner {
    /// `VDI.attach`, answered with [`catena_rpc::Attached`].
    pub(crate) fn vdi_attach(&mut self, call: &mut Call) -> Result<Given, Failure> {
        let asked: VdiAttachParams = params(&call.request)?;
        let vdi = vdi_uuid(&asked.vdi)?;
        Err(Failure::new(ErrorName::Unsupported, "disks are not served yet").object("vdi", vdi))
    }

    /// `VDI.detach`, answered with [`catena_rpc::Done`].
    pub(crate) fn vdi_detach(&mut self, call: &mut Call) -> Result<Given, Failure> {
        let asked: VdiParams = params(&call.request)?;
        let vdi = vdi_uuid(&asked.vdi)?;
        Err(Failure::new(ErrorName::VdiUnavailable, "the disk is not attached")
            .hint("`catena vdi list` says which are")
            .object("vdi", vdi))
    }
}
