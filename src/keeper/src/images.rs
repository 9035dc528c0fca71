//! Making images, and keeping what the catalog says about them true.

use crate::crash::{self, Phase};
use crate::failures::from_trouble;
use crate::hands::ready_new;
use crate::labels;
use crate::owner::Owner;
use crate::sizing::Target;
use catena_control::{Answer, CreateImage, ImageReport, Parent, Request};
use catena_sr_api::Store;
use catena_types::{
    BLOCK_BYTES, Bytes, ErrorName, Failure, Format, ImageId, ImageRecord, ImageState, JobRecord, Made,
    VHD_MAX_SIZE, VHD_MIN_SIZE, VdiRecord,
};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// Images created with one request to the worker.
const BATCH: usize = 64;

/// A size that a VDI can have: in range, rounded up to a whole block.
pub(crate) fn checked_size(asked: Bytes) -> Result<Bytes, Failure> {
    let size = asked.round_up(BLOCK_BYTES);
    if asked.0 == 0 || asked > VHD_MAX_SIZE || size < VHD_MIN_SIZE {
        let message = format!("a disk of {} bytes is out of range", asked.0);
        return Err(Failure::new(ErrorName::VdiSize, message).hint("a disk has between 1 byte and 2040 GiB"));
    }
    Ok(size)
}

/// Bytes that an empty image of that size takes: headers, block table and batmap.
pub(crate) fn empty_bytes(size: Bytes) -> Bytes {
    Bytes(8192 + u64::from(size.blocks()) * 5)
}

/// The row of an image that is to be made; making it names its container.
pub(crate) fn new_image(parent: Option<ImageId>, virtual_size: Bytes) -> ImageRecord {
    ImageRecord {
        id: ImageId::random(),
        parent,
        format: Format::Vhd,
        container: String::new(),
        virtual_size,
        allocated: Bytes(0),
        state: ImageState::Ok,
        hidden: false,
        foreign: false,
    }
}

/// The name of the container that is to be made for an image.
pub(crate) fn container_name(store: &dyn Store, image: &ImageRecord) -> String {
    store.container_name(image.id, image.format.extension())
}

impl Owner {
    /// Journals the job, then makes the images: containers, then formats, each durable. Their rows are changed to what they
    /// take; where containers must be sized they say before how large those are to be, or nothing for empty images. `vdis` are to
    /// point at some of them. On failure everything made is removed again.
    pub(crate) fn make(
        &mut self,
        job: &mut JobRecord,
        images: &mut [ImageRecord],
        vdis: &[VdiRecord],
    ) -> Result<(), Failure> {
        self.name(images);
        for vdi in vdis {
            let leaf = images.iter().find(|image| image.id == vdi.image);
            if let Some(leaf) = leaf {
                self.store.expect_labels(&leaf.container, &labels::of(vdi));
            }
        }
        self.make_on(job, images, &BTreeMap::new())
    }

    fn name(&self, images: &mut [ImageRecord]) {
        images.iter_mut().for_each(|image| image.container = container_name(&*self.store, image));
    }

    /// The same on parents that the catalog does not have yet, which are given.
    pub(crate) fn make_on(
        &mut self,
        job: &mut JobRecord,
        images: &mut [ImageRecord],
        parents: &BTreeMap<ImageId, ImageRecord>,
    ) -> Result<(), Failure> {
        self.name(images);
        let mut need = 0;
        for image in &mut *images {
            if image.allocated == Bytes(0) {
                self.size_new(image, Target::Fitted)?;
            }
            need += if self.is_sized() { image.allocated.0 } else { empty_bytes(image.virtual_size).0 };
        }
        self.need_space(Bytes(need))?;
        let makes =
            images.iter().map(|image| Made { image: image.id, container: image.container.clone() }).collect();
        self.begin(job, makes)?;
        let job = job.clone();
        self.or_undo(&job, |owner| {
            for batch in images.chunks_mut(BATCH) {
                owner.make_batch(batch, parents)?;
            }
            Ok(())
        })?;
        crash::pass(job.work.kind(), Phase::Made);
        Ok(())
    }

    fn make_batch(
        &mut self,
        images: &mut [ImageRecord],
        parents: &BTreeMap<ImageId, ImageRecord>,
    ) -> Result<(), Failure> {
        let created = Timestamp::now().as_second();
        let mut fds = Vec::with_capacity(images.len());
        let mut specs = Vec::with_capacity(images.len());
        let wanted: Vec<(&str, Bytes)> =
            images.iter().map(|image| (image.container.as_str(), image.allocated)).collect();
        self.store.create_containers(&wanted)?;
        for image in &*images {
            fds.push(ready_new(&*self.store, &image.container)?);
            specs.push(CreateImage {
                id: image.id,
                format: image.format,
                virtual_size: image.virtual_size,
                parent: image.parent.map(|parent| self.parent_in(parent, parents)).transpose()?,
                created,
            });
        }
        self.small.call(&Request::Create { images: specs }, fds).map_err(|trouble| from_trouble(&trouble))?;
        for image in images {
            image.allocated = self.store.info(&image.container)?.allocated;
        }
        Ok(())
    }

    /// What a child's header says of its parent.
    pub(crate) fn parent(&self, id: ImageId) -> Result<Parent, Failure> {
        self.named(self.image(id)?)
    }

    fn parent_in(&self, id: ImageId, given: &BTreeMap<ImageId, ImageRecord>) -> Result<Parent, Failure> {
        given.get(&id).map_or_else(|| self.parent(id), |row| self.named(row))
    }

    fn named(&self, row: &ImageRecord) -> Result<Parent, Failure> {
        let modified = self.store.info(&row.container)?.modified;
        Ok(Parent { id: row.id_in_headers(), container: row.container.clone(), modified })
    }

    /// The row of an image that must be there.
    pub(crate) fn image(&self, id: ImageId) -> Result<&ImageRecord, Failure> {
        let missing = || Failure::new(ErrorName::VdiMissing, format!("there is no image {id}"));
        self.catalog.state().images.get(&id).map(|row| &**row).ok_or_else(missing)
    }

    /// Whether the image has no place for any block.
    pub(crate) fn owns_nothing(&mut self, id: ImageId) -> Result<bool, Failure> {
        let row = self.image(id)?.clone();
        Ok(!self.report_of(&row)?.owns_blocks)
    }

    /// What the image says of itself.
    pub(crate) fn report_of(&mut self, row: &ImageRecord) -> Result<ImageReport, Failure> {
        let fd = self.store.activate(&row.container, catena_sr_api::Access::ReadOnly)?;
        let answer = self.small.call(&Request::Inspect { formats: vec![row.format] }, vec![fd]);
        match answer.map_err(|trouble| from_trouble(&trouble))? {
            Answer::Reports { reports } => match reports.into_iter().next() {
                Some(report) => report.map_err(|trouble| from_trouble(&trouble)),
                None => Err(unexpected()),
            },
            _ => Err(unexpected()),
        }
    }
}

/// A worker answered something else than it was asked.
pub(crate) fn unexpected() -> Failure {
    Failure::new(ErrorName::IoError, "the datapath worker gave an unexpected answer")
}
