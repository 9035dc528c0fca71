//! A full recount: the tree as the agent shows it, and what `stat` says of each container, made into the figures that lists,
//! records and the worker's status should have.

use crate::harness::Agent;
use crate::harness::small::Small;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// An image, counted.
struct Image {
    parent: Option<String>,
    bytes: u64,
    /// The record of the VDI that points at it.
    vdi: Option<Value>,
    garbage: bool,
}

/// What there is, and what the agent said at the same time.
pub(crate) struct Recount {
    images: BTreeMap<String, Image>,
    list: Value,
    reclaimable: Value,
    stat: Value,
    expected_stat: Value,
}

impl Recount {
    /// Counts. Nothing must be going on.
    pub(crate) fn of(agent: &Agent, small: &Small) -> Result<Self> {
        let place = small.point();
        let mut images = BTreeMap::new();
        let tree = agent.json(&["vdi", "tree"])?;
        for root in tree["roots"].as_array().context("roots")? {
            count(root, &place, &mut images)?;
        }
        let reclaimable = agent.json(&["coalesce", "status", "store"])?["srs"][0]["reclaimable_bytes"].take();
        // The catalog is tidied up while nothing goes on: what was the same before and after holds.
        let (stat, expected_stat) = loop {
            let before = figures(small)?;
            let record = agent.json(&["sr", "stat", "store"])?;
            if figures(small)? == before {
                break (record, before);
            }
        };
        let list = agent.json(&["vdi", "list"])?;
        Ok(Self { images, list, reclaimable, stat, expected_stat })
    }

    /// What all images take.
    pub(crate) fn images(&self) -> u64 {
        self.images.values().map(|image| image.bytes).sum()
    }

    /// Whether the agent is right.
    pub(crate) fn compare(&self) -> Result<()> {
        let listed = self.list["vdis"].as_array().context("vdis")?;
        for vdi in listed {
            let leaf = vdi["image"].as_str().context("an image")?;
            let expected = self.space_of(leaf)?;
            let said = ["own_bytes", "shared_bytes", "reclaimable_bytes", "reclaimable_after_coalesce_bytes"]
                .map(|field| vdi[field].as_u64().unwrap_or(u64::MAX));
            ensure!(
                said == expected,
                "own, shared, reclaimable, with merges: {expected:?}, not {said:?}: {vdi}"
            );
            ensure!(Some(vdi) == self.images[leaf].vdi.as_ref(), "list and tree differ: {vdi}");
        }
        let reclaimable: u64 = self.images.keys().map(|image| self.freed(image)).sum();
        ensure!(self.reclaimable == json!(reclaimable), "{reclaimable}, not {}", self.reclaimable);
        for (field, expected) in self.expected_stat.as_object().into_iter().flatten() {
            ensure!(self.stat[field] == *expected, "{field}: {expected}, not {}", self.stat[field]);
        }
        Ok(())
    }

    fn children(&self, parent: &str) -> Vec<&str> {
        let found =
            self.images.iter().filter(|(_, image)| image.parent.as_deref() == Some(parent) && !image.garbage);
        found.map(|(id, _)| id.as_str()).collect()
    }

    /// The VDIs that read through an image.
    fn readers(&self, image: &str) -> usize {
        let own = usize::from(self.images[image].vdi.is_some());
        own + self.children(image).into_iter().map(|child| self.readers(child)).sum::<usize>()
    }

    /// Own, shared, freed by deleting, freed by deleting and merging.
    fn space_of(&self, leaf: &str) -> Result<[u64; 4]> {
        let [mut own, mut shared, mut now, mut merged] = [0; 4];
        let (mut next, mut removed) = (Some(leaf.to_owned()), true);
        let mut below: Option<String> = None;
        while let Some(id) = next {
            let image = self.images.get(&id).with_context(|| format!("no image {id}"))?;
            *(if self.readers(&id) == 1 { &mut own } else { &mut shared }) += image.bytes;
            let others: Vec<&str> =
                self.children(&id).into_iter().filter(|child| Some(*child) != below.as_deref()).collect();
            if removed && others.is_empty() {
                now += image.bytes;
            } else if removed {
                removed = false;
                if let [only] = others[..] {
                    merged = self.merge_frees(only, &id);
                }
            }
            (below, next) = (Some(id), image.parent.clone());
        }
        Ok([own, shared, now, now + merged])
    }

    /// What a merge of an only child into its parent frees at most; nothing if there will be none.
    fn merge_frees(&self, child: &str, parent: &str) -> u64 {
        let image = &self.images[child];
        let stays = match &image.vdi {
            Some(vdi) => vdi["is_a_snapshot"] == true,
            None => self.children(child).is_empty(),
        };
        if stays { 0 } else { image.bytes.min(self.images[parent].bytes) }
    }

    /// What the worker can free by what it does about this image.
    fn freed(&self, id: &str) -> u64 {
        let image = &self.images[id];
        if image.vdi.is_none() && self.children(id).is_empty() {
            return image.bytes;
        }
        match &image.parent {
            Some(parent) if self.children(parent) == [id] => self.merge_frees(id, parent),
            _ => 0,
        }
    }
}

/// Takes in a node of the tree and what hangs from it.
fn count(node: &Value, place: &Path, images: &mut BTreeMap<String, Image>) -> Result<()> {
    let name = |field: &str| node[field].as_str().map(str::to_owned);
    let container = place.join(name("container").context("a container")?);
    let bytes = fs::metadata(&container).map_or(0, |status| status.blocks() * 512);
    ensure!(node["own_bytes"] == json!(bytes), "{} takes {bytes}: {node}", container.display());
    let vdi = Some(node["vdi"].clone()).filter(|vdi| !vdi.is_null());
    let image = Image { parent: name("parent"), bytes, vdi, garbage: node["state"] == "garbage" };
    images.insert(name("image").context("an image")?, image);
    for child in node["children"].as_array().into_iter().flatten() {
        count(child, place, images)?;
    }
    Ok(())
}

/// The figures of an SR that has a file system for itself.
fn figures(small: &Small) -> Result<Value> {
    let system = small.figures()?;
    let unit = system.fragment_size();
    let mut used = 0;
    for folder in [small.point(), small.point().join(".catena")] {
        for entry in fs::read_dir(folder)? {
            // A file that goes just now is noticed by the second count.
            let Ok(status) = entry?.metadata() else { continue };
            used += if status.is_file() { status.blocks() * 512 } else { 0 };
        }
    }
    let ballast = fs::metadata(small.point().join("ballast")).map_or(0, |status| status.blocks() * 512);
    Ok(json!({
        "physical_size": system.blocks() * unit,
        "free_space": system.blocks_available() * unit,
        "physical_utilisation": used - ballast,
    }))
}
