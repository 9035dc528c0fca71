//! Who owns what, for clients that ask, and finding it out ahead of reads.

use super::Disk;
use super::task::{Kind, Poll, Step, Survey, Task};
use crate::serve::work::{Extent, Outcome};
use catena_blockio::Engine;
use catena_types::SECTOR_BYTES;

impl Disk {
    pub(super) fn step_status(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Step {
        let mut survey = task.survey.take().unwrap_or_else(|| Survey::of(task.range.clone()));
        match self.survey(index, task, &mut survey, engine) {
            Poll::Pending => {
                task.survey = Some(survey);
                Step::Wait
            }
            Poll::Failed(trouble) => Step::End(Outcome::Failed(trouble)),
            Poll::Ready => Step::End(match task.kind {
                Kind::Status { one } => Outcome::Extents(self.extents(task, &survey, one)),
                _ => Outcome::Done,
            }),
        }
    }

    fn extents(&self, task: &Task, survey: &Survey, one: bool) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (block, run) in &survey.found {
            let bytes = |sector: usize| block.start().0 + sector as u64 * SECTOR_BYTES;
            let start = bytes(run.sectors.start).max(task.range.start);
            let len = bytes(run.sectors.end).min(task.range.end) - start;
            let depth = self.layers.depth(run.owner);
            let extent = Extent { len, hole: depth == 0, zero: depth == 0, depth };
            match extents.last_mut() {
                Some(last) if last.depth == depth => last.len += len,
                Some(_) if one => break,
                _ => extents.push(extent),
            }
        }
        extents
    }
}
