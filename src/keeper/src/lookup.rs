//! Requests that change nothing: answered by the reader thread from the published snapshot, so they never wait for a disk,
//! a merge or another client.

use crate::dispatch::params;
use crate::views::View;
use catena_rpc::{ListParams, Reply, Request, ResolveParams, Resolved, Text, VdiParams};
use catena_types::{ErrorName, Failure, ImageId, VdiUuid};
use serde::Serialize;
use std::collections::BTreeMap;
use uuid::Uuid;

/// The answer to a request that changes nothing; `None` if the request is for the owner.
pub(crate) fn answer(view: &View, request: &Request) -> Option<Reply> {
    Some(match request.method.as_str() {
        "SR.get_record" => Ok(Text::of(&view.sr())),
        "VDI.list" => Ok(array("vdis", &view.vdis())),
        "VDI.get_record" => params(request).and_then(|p: VdiParams| {
            let uuid = vdi_uuid(&p.vdi)?;
            view.vdi(uuid).map(|vdi| Text::of(&vdi)).ok_or_else(|| no_such_vdi(&p.vdi))
        }),
        "VDI.get_tree" => params(request).and_then(|p: ListParams| tree(view, &p)),
        "Coalesce.status" => Ok(array("srs", &[view.coalesce_status()])),
        "Job.list" => Ok(array("jobs", &view.jobs())),
        "Keeper.resolve" => params(request).map(|p: ResolveParams| array("matches", &resolve(view, &p.name))),
        _ => return None,
    })
}

/// A document with one array.
fn array(name: &str, items: &[impl Serialize]) -> Text {
    Text::of(&BTreeMap::from([(name, items)]))
}

fn tree(view: &View, params: &ListParams) -> Reply {
    let of = match &params.vdi {
        None => None,
        Some(name) => {
            let uuid = vdi_uuid(name)?;
            let image = view.0.state.vdis.get(&uuid).map(|vdi| vdi.image).or_else(|| {
                let id = ImageId(uuid.0);
                view.0.state.images.contains_key(&id).then_some(id)
            });
            Some(image.ok_or_else(|| no_such_vdi(name))?)
        }
    };
    Ok(array("roots", &view.roots(of)))
}

/// What a name may mean: a VDI or an image by its uuid; a VDI or image by 8 digits or more of it; a VDI by its label, or by
/// the name of its container with or without extension, which is what users of adopted directories know.
fn resolve(view: &View, name: &str) -> Vec<Resolved> {
    let state = &view.0.state;
    let vdi = |vdi: &std::sync::Arc<catena_types::VdiRecord>| Resolved {
        uuid: vdi.uuid,
        name_label: vdi.name_label.clone(),
        is_image: false,
    };
    let image =
        |id: &ImageId| Resolved { uuid: VdiUuid(id.0), name_label: "base copy".to_owned(), is_image: true };
    let lower = name.to_ascii_lowercase();
    if let Ok(uuid) = Uuid::try_parse(&lower) {
        let found = state.vdis.get(&VdiUuid(uuid)).map(vdi);
        return found
            .or_else(|| state.images.get_key_value(&ImageId(uuid)).map(|(id, _)| image(id)))
            .into_iter()
            .collect();
    }
    let by_label: Vec<Resolved> = state.vdis.values().filter(|row| row.name_label == name).map(vdi).collect();
    if !by_label.is_empty() {
        return by_label;
    }
    if lower.len() >= 8 && lower.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        let vdis = state.vdis.values().filter(|row| row.uuid.to_string().starts_with(&lower)).map(vdi);
        let images = state.images.values().filter(|row| state.vdi_of(row.id).is_none());
        let images = images.filter(|row| row.id.to_string().starts_with(&lower)).map(|row| image(&row.id));
        return vdis.chain(images).collect();
    }
    let container = |row: &&std::sync::Arc<catena_types::ImageRecord>| {
        row.container == name || row.container.rsplit_once('.').is_some_and(|(stem, _)| stem == name)
    };
    let named = state.images.values().filter(container);
    named.map(|row| state.vdi_of(row.id).map_or_else(|| image(&row.id), vdi)).collect()
}

/// A VDI's uuid as the front sends it.
pub(crate) fn vdi_uuid(text: &str) -> Result<VdiUuid, Failure> {
    text.parse().map_err(|_| no_such_vdi(text))
}

/// There is none.
pub(crate) fn no_such_vdi(name: &str) -> Failure {
    Failure::new(ErrorName::VdiMissing, format!("there is no VDI '{name}'"))
        .hint("`catena vdi list` names them")
}
