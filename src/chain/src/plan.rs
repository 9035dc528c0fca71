//! What must be done to a container, as data: so that whoever decides need not wait, and whoever waits need not decide.
//!
//! A format that is written while it is read says what is to be written as a [`Plan`]; the owner of the state has it run
//! elsewhere and goes on. Used by [`LiveLayer`](crate::LiveLayer).

use catena_blockio::{Container, collecting};
use catena_types::{Bytes, FileOffset};
use std::io;

/// From so many writes in a row on they are sent together.
const MANY: usize = 8;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write these bytes there.
    Write {
        /// Where.
        at: FileOffset,
        /// What.
        bytes: Vec<u8>,
    },
    /// Everything before is durable before anything after is begun.
    Barrier,
    /// Give the range, of which nobody knows any more, back to a storage that can take it. One that cannot loses nothing. What stands
    /// there afterwards is undefined.
    Release {
        /// Where.
        at: FileOffset,
        /// How much.
        len: Bytes,
    },
    /// Give the range back; it reads as zero afterwards.
    Punch {
        /// Where.
        at: FileOffset,
        /// How much.
        len: Bytes,
    },
    /// Cut or extend the container.
    SetSize(Bytes),
}

/// Steps in order. Between two barriers a crash may leave any subset of them done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
}

impl Plan {
    /// A barrier and nothing else.
    pub fn barrier() -> Self {
        Self { steps: vec![Step::Barrier] }
    }

    /// Adds a step.
    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Adds a write.
    pub fn write(&mut self, at: FileOffset, bytes: impl Into<Vec<u8>>) {
        self.push(Step::Write { at, bytes: bytes.into() });
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether it makes something durable.
    pub fn has_barrier(&self) -> bool {
        self.steps.contains(&Step::Barrier)
    }

    /// Whether all that it does is durable when it has been run.
    pub fn ends_with_barrier(&self) -> bool {
        self.steps.last() == Some(&Step::Barrier)
    }

    /// The steps.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Does it all. Blocks. After an error what was done is unknown; as long as no barrier failed, running it again from the
    /// beginning does the same as running it once.
    pub fn run(&self, container: &dyn Container) -> io::Result<()> {
        let is_write = |step: &Step| matches!(step, Step::Write { .. });
        for group in self.steps.chunk_by(|one, next| is_write(one) && is_write(next)) {
            let all = || group.iter().try_for_each(|step| step.run(container));
            if group.len() < MANY {
                all()?;
                continue;
            }
            for step in group {
                step.announce(container);
            }
            collecting(container, all)??;
        }
        Ok(())
    }
}

impl Step {
    fn run(&self, container: &dyn Container) -> io::Result<()> {
        match self {
            Self::Write { at, bytes } => container.write_at(bytes, *at),
            Self::Barrier => container.flush(),
            Self::Punch { at, len } => container.punch(*at, *len),
            Self::Release { at, len } => {
                if let Err(error) = container.release(*at, *len) {
                    tracing::warn!(%error, at = at.0, "freed space could not be given back");
                }
                Ok(())
            }
            Self::SetSize(size) => container.set_size(*size),
        }
    }

    fn announce(&self, container: &dyn Container) {
        if let Self::Write { at, bytes } = self {
            container.expect_write(*at, Bytes(bytes.len() as u64));
        }
    }
}
