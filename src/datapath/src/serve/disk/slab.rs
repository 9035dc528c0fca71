//! Numbered things that come and go: requests under way, operations that were submitted.

/// Things with small numbers, which are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Puts it in; its number.
    pub(super) fn insert(&mut self, item: T) -> usize {
        if let Some(index) = self.free.pop() {
            self.items[index] = Some(item);
            return index;
        }
        self.items.push(Some(item));
        self.items.len() - 1
    }

    /// The thing with that number.
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.items.get_mut(index)?.as_mut()
    }

    /// Takes it out; the number stays its own until it is put back or removed.
    pub(super) fn take(&mut self, index: usize) -> Option<T> {
        self.items.get_mut(index)?.take()
    }

    /// Puts back what was taken.
    pub(super) fn put_back(&mut self, index: usize, item: T) {
        self.items[index] = Some(item);
    }

    /// The number of what was taken is free.
    pub(super) fn free(&mut self, index: usize) {
        self.free.push(index);
    }

    /// Takes it out.
    pub(super) fn remove(&mut self, index: usize) -> Option<T> {
        let item = self.items.get_mut(index)?.take()?;
        self.free.push(index);
        Some(item)
    }

    /// Whether there is such a one.
    pub(super) fn any(&self, is_it: impl FnMut(&T) -> bool) -> bool {
        self.items.iter().flatten().any(is_it)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.items.len() == self.free.len()
    }
}
