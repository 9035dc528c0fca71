//! The data of options, parsed: what a client asks for in the handshake. Called by the handshake only.

use crate::session::Contexts;
use crate::wire::Cursor;

/// What `INFO` and `GO` carry.
pub(crate) struct Wanted<'a> {
    /// The export.
    pub(crate) name: &'a [u8],
    /// Numbers of pieces of information, two bytes each.
    infos: &'a [u8],
}

impl<'a> Wanted<'a> {
    /// Nothing where it is malformed.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor(data);
        let name = cursor.string()?;
        let count = usize::from(cursor.u16()?);
        (cursor.0.len() == 2 * count).then_some(Self { name, infos: cursor.0 })
    }

    /// Whether a piece of information is asked for.
    pub(crate) fn asks(&self, info: u16) -> bool {
        self.infos.as_chunks::<2>().0.contains(&info.to_be_bytes())
    }
}

/// What `LIST_META_CONTEXT` and `SET_META_CONTEXT` carry.
pub(crate) struct Queries<'a> {
    /// The export.
    pub(crate) name: &'a [u8],
    /// No query at all.
    pub(crate) is_empty: bool,
    /// The contexts that queries name.
    pub(crate) named: Contexts,
    /// Those, and what queries for a whole namespace (`base:`) stand for.
    pub(crate) matched: Contexts,
}

impl<'a> Queries<'a> {
    /// Nothing where it is malformed. Queries that we do not know are passed over, as the protocol demands.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor(data);
        let name = cursor.string()?;
        let count = cursor.u32()?;
        let (mut named, mut matched) = (Contexts::default(), Contexts::default());
        // Every query takes four bytes at least, so a count that is too large soon meets the end.
        for _ in 0..count {
            let query = cursor.string()?;
            for (context, id) in Contexts::NAMES {
                if query == context.as_bytes() {
                    named.select(id);
                }
                if query == context.as_bytes() || query == namespace(context) {
                    matched.select(id);
                }
            }
        }
        cursor.at_end().then_some(Self { name, is_empty: count == 0, named, matched })
    }
}

/// The part of a context's name up to its colon.
fn namespace(context: &str) -> &[u8] {
    let end = context.find(':').map_or(0, |colon| colon + 1);
    &context.as_bytes()[..end]
}
