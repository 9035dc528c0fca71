//! Bytes on their way to a client: heads of replies and the buffers of reads, gathered into as few calls as can be.
//!
//! What a client does not take yet stays here; how much that may be is the connection's business.

use catena_blockio::AlignedBuf;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::ops::Range;

/// Pieces sent in one call; the kernel takes at most 1024.
const GATHERED: usize = 128;
/// Heads that follow each other are kept in one piece of at most so many bytes.
const SMALL: usize = 4096;
/// What zeros are sent from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A queue of bytes.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pieces: VecDeque<Piece>,
    /// Bytes in all pieces.
    left: usize,
}

#[derive(Debug)]
enum Piece {
    /// Heads, from this byte on.
    Small(Vec<u8>, usize),
    /// These bytes of a buffer.
    Data(AlignedBuf, Range<usize>),
    /// So many zeros.
    Zeros(usize),
}

impl Output {
    /// How many bytes wait.
    pub(crate) const fn len(&self) -> usize {
        self.left
    }

    /// Adds a few bytes.
    pub(crate) fn small(&mut self, bytes: &[u8]) {
        self.left += bytes.len();
        if let Some(Piece::Small(last, _)) = self.pieces.back_mut()
            && last.len() + bytes.len() <= SMALL
        {
            last.extend_from_slice(bytes);
            return;
        }
        let mut piece = Vec::with_capacity(bytes.len().max(64));
        piece.extend_from_slice(bytes);
        self.pieces.push_back(Piece::Small(piece, 0));
    }

    /// Adds a range of a buffer, which comes back through [`send`](Self::send).
    pub(crate) fn data(&mut self, buf: AlignedBuf, range: Range<usize>) {
        self.left += range.len();
        self.pieces.push_back(Piece::Data(buf, range));
    }

    /// Adds zeros.
    pub(crate) fn zeros(&mut self, count: usize) {
        self.left += count;
        self.pieces.push_back(Piece::Zeros(count));
    }

    /// Sends as much as the socket takes. True: everything is sent; false: the socket takes no more for now. Buffers that are
    /// sent go to `used`.
    pub(crate) fn send(
        &mut self,
        mut socket: impl Write,
        mut used: impl FnMut(AlignedBuf),
    ) -> io::Result<bool> {
        while self.left > 0 {
            let mut gathered = [IoSlice::new(&[]); GATHERED];
            let count = self.gather(&mut gathered);
            match socket.write_vectored(&gathered[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.sent(sent, &mut used),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Gives back every buffer, unsent.
    pub(crate) fn drop_all(&mut self, mut used: impl FnMut(AlignedBuf)) {
        self.left = 0;
        for piece in self.pieces.drain(..) {
            if let Piece::Data(buf, _) = piece {
                used(buf);
            }
        }
    }

    fn gather<'a>(&'a self, into: &mut [IoSlice<'a>; GATHERED]) -> usize {
        let mut count = 0;
        for piece in &self.pieces {
            if count == GATHERED {
                break;
            }
            match piece {
                Piece::Small(bytes, from) => into[count] = IoSlice::new(&bytes[*from..]),
                Piece::Data(buf, range) => into[count] = IoSlice::new(&buf[range.clone()]),
                Piece::Zeros(zeros) => {
                    into[count] = IoSlice::new(&ZEROS[..(*zeros).min(ZEROS.len())]);
                    if *zeros > ZEROS.len() {
                        // The rest of them has to come before the next piece.
                        return count + 1;
                    }
                }
            }
            count += 1;
        }
        count
    }

    fn sent(&mut self, mut count: usize, used: &mut impl FnMut(AlignedBuf)) {
        self.left -= count;
        while let Some(piece) = self.pieces.front_mut() {
            let len = piece.len();
            if count < len {
                piece.advance(count);
                return;
            }
            count -= len;
            if let Some(Piece::Data(buf, _)) = self.pieces.pop_front() {
                used(buf);
            }
        }
    }
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Small(bytes, from) => bytes.len() - from,
            Self::Data(_, range) => range.len(),
            Self::Zeros(count) => *count,
        }
    }

    fn advance(&mut self, by: usize) {
        match self {
            Self::Small(_, from) => *from += by,
            Self::Data(_, range) => range.start += by,
            Self::Zeros(count) => *count -= by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Takes a given number of bytes in each call; 0 is "not now".
    struct Slow(Vec<u8>, VecDeque<usize>);

    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(buf)])
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            let room = self.1.pop_front().unwrap_or(usize::MAX);
            if room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(room).collect();
            self.0.extend(&all);
            Ok(all.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn all_bytes_arrive_in_order_however_they_are_taken(
            pieces in prop::collection::vec((0u8..3, 0usize..200_000, any::<u8>()), 0..40),
            room in prop::collection::vec(prop_oneof![Just(0), 1usize..70_000], 0..60),
        ) {
            let (mut output, mut expected, mut buffers) = (Output::default(), Vec::new(), 0);
            for (kind, len, value) in pieces {
                match kind {
                    0 => {
                        let bytes = vec![value; len % 100];
                        output.small(&bytes);
                        expected.extend(bytes);
                    }
                    1 => {
                        let mut buf = AlignedBuf::zeroed(len + 3);
                        buf.fill(value);
                        output.data(buf, 1..len + 1);
                        expected.extend(vec![value; len]);
                        buffers += 1;
                    }
                    _ => {
                        output.zeros(len);
                        expected.extend(vec![0; len]);
                    }
                }
            }
            prop_assert_eq!(output.len(), expected.len());
            let mut socket = Slow(Vec::new(), room.into());
            let mut back = 0;
            while !output.send(&mut socket, |_| back += 1).unwrap() {}
            output.drop_all(|_| back += 1);
            prop_assert!(socket.0 == expected);
            prop_assert_eq!((output.len(), back), (0, buffers));
        }
    }
}
