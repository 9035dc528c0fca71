//! The images that a task may be about, kept from commit to commit: so that a plan looks at what there is to do, and not at all
//! images of the SR.
//!
//! Invariant: every image that [`task_of`] has a task for is a candidate. What is no longer one is dropped by the next plan.

use crate::plan::{Moment, Plan, Task, plan_tasks, task_of};
use crate::tree::Tree;
use catena_types::ImageId;
use std::collections::BTreeSet;

/// Images to be looked at by the next plan. The owner of an SR has one, and tells it of every change.
#[derive(Debug, Clone, Default)]
pub struct Candidates(BTreeSet<ImageId>);

impl Candidates {
    /// Those of a tree that nothing is known of yet.
    pub fn of(tree: &impl Tree) -> Self {
        let tasks = tree.images().filter(|image| task_of(tree, image).is_some());
        Self(tasks.map(|image| image.id).collect())
    }

    /// To be told, after a change, of every image whose row or VDI was added, changed or removed, and of every parent that
    /// such an image has or had.
    pub fn touched(&mut self, tree: &impl Tree, image: ImageId) {
        self.0.insert(image);
        // An image can be merged only while it is its parent's only child: the last one left becomes a candidate.
        self.0.extend(tree.only_child(image));
    }

    /// The plan, as [`plan`](crate::plan()) makes it of the whole tree.
    pub fn plan(&mut self, tree: &impl Tree, moment: &Moment) -> Plan {
        let mut tasks: Vec<Task> = Vec::with_capacity(self.0.len());
        self.0.retain(|id| {
            let task = tree.image(*id).and_then(|image| task_of(tree, image));
            tasks.extend(task);
            task.is_some()
        });
        plan_tasks(tree, moment, tasks.into_iter())
    }
}
