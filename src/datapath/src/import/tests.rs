//! Streams of VHDs of any legal layout against a model, whole and cut off; a raw stream larger than was guessed.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![allow(clippy::cast_possible_truncation, reason = "patterns may be cut to a byte")]

use super::*;
use catena_control::Channel;
use proptest::prelude::*;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

/// A VHD as another program may have laid it out.
#[derive(Debug, Clone)]
struct Layout {
    /// Sectors of the disk.
    sectors: u64,
    ours: bool,
    /// Free bytes, in sectors: before the header, before the table, after it.
    gaps: [u64; 3],
    /// In the order of the file: block, sectors before its bitmap, its bitmap.
    blocks: Vec<(u32, u64, u8)>,
    /// Sectors after the last block.
    rest: u64,
    /// The last block is cut to so many sectors.
    last: Option<u64>,
}

fn layouts() -> impl Strategy<Value = Layout> {
    let blocks = proptest::sample::subsequence((0..6).collect::<Vec<u32>>(), 0..5).prop_shuffle();
    let lead = (0..20u64, prop_oneof![Just(0xff), Just(0), any::<u8>()]);
    let blocks = (blocks, proptest::collection::vec(lead, 6));
    let blocks = blocks.prop_map(|(blocks, leads)| {
        blocks.into_iter().zip(leads).map(|(block, (gap, bits))| (block, gap, bits)).collect()
    });
    let last = proptest::option::of(1..4096u64);
    // The last of six blocks may be short.
    let size = prop_oneof![Just(6 * 4096), 5 * 4096 + 1..6 * 4096u64];
    (size, any::<bool>(), [0..9u64, 0..9, 0..9], blocks, 0..9u64, last).prop_map(
        |(sectors, ours, gaps, blocks, rest, last)| Layout { sectors, ours, gaps, blocks, rest, last },
    )
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn seal(bytes: &mut [u8], at: usize) {
    let sum = !bytes.iter().fold(0u32, |sum, byte| sum + u32::from(*byte));
    put(bytes, at, &sum.to_be_bytes());
}

fn content(block: u32) -> Vec<u8> {
    (0..length(BLOCK_BYTES)).map(|at| ((at / 512 * 31 + at) % 251) as u8 ^ block as u8).collect()
}

impl Layout {
    fn footer(&self) -> Vec<u8> {
        let mut footer = vec![0; 512];
        put(&mut footer, 0, b"conectix");
        put(&mut footer, 8, &[0, 0, 0, 2, 0, 1, 0, 0]);
        put(&mut footer, 16, &(512 + self.gaps[0] * 512).to_be_bytes());
        put(&mut footer, 28, if self.ours { b"tap\0\0\x01\0\x03" } else { b"vbox\0\x04\0\x02" });
        put(&mut footer, 48, &(self.sectors * 512).to_be_bytes());
        put(&mut footer, 60, &3u32.to_be_bytes());
        put(&mut footer, 68, &[7; 16]);
        seal(&mut footer, 64);
        footer
    }

    /// The file, and the disk that it holds.
    fn build(&self) -> (Vec<u8>, Vec<u8>) {
        let mut file = self.footer();
        file.resize(file.len() + length(self.gaps[0] * 512), 0xa5);
        let header_at = file.len();
        let table_at = header_at + 1024 + length(self.gaps[1] * 512);
        let mut header = vec![0; 1024];
        put(&mut header, 0, b"cxsparse");
        put(&mut header, 8, &u64::MAX.to_be_bytes());
        put(&mut header, 16, &(table_at as u64).to_be_bytes());
        put(&mut header, 24, &0x1_0000u32.to_be_bytes());
        put(&mut header, 28, &6u32.to_be_bytes());
        put(&mut header, 32, &0x20_0000u32.to_be_bytes());
        seal(&mut header, 36);
        file.extend(header);
        file.resize(table_at, 0xa5);
        file.resize(table_at + 512, 0xff);
        // Where ours have a batmap.
        file.resize(file.len() + length((self.gaps[2] + 2 * u64::from(self.ours)) * 512), 0);
        let mut disk = vec![0; 6 << 21];
        for (block, gap, bits) in &self.blocks {
            file.resize(file.len() + length(gap * 512), 0xa5);
            let sector = u32::try_from(file.len() / 512).unwrap();
            put(&mut file, table_at + 4 * *block as usize, &sector.to_be_bytes());
            file.extend([*bits; 512]);
            file.extend(content(*block));
            for (number, sector) in content(*block).chunks(512).enumerate() {
                if bits & (0x80 >> (number % 8)) != 0 {
                    put(&mut disk, *block as usize * (2 << 20) + number * 512, sector);
                }
            }
        }
        match (self.blocks.last(), self.last) {
            (Some((block, ..)), Some(last)) => {
                file.truncate(file.len() - length((4096 - last) * 512));
                disk[*block as usize * (2 << 20)..][length(last * 512)..2 << 20].fill(0);
            }
            _ => file.resize(file.len() + length(self.rest * 512), 0xa5),
        }
        file.extend(self.footer());
        disk[length(self.sectors * 512)..].fill(0);
        (file, disk)
    }
}

/// Imports bytes through a pipe; the image's file and what the import came to.
fn through_a_pipe(bytes: Vec<u8>, format: ImportFormat) -> (File, Result<Bytes, Trouble>) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let writer = std::thread::spawn(move || {
        // A stream that is refused is not read to its end.
        let _ = File::from(writer).write_all(&bytes);
    });
    let target = tempfile::tempfile().unwrap();
    let fds: Vec<OwnedFd> = vec![reader, target.try_clone().unwrap().into()];
    let (ours, _theirs) = Channel::pair().unwrap();
    let answered =
        import(format, ImageId::random(), 0, &mut Descriptors::new(fds), &mut Supervisor::new(&ours));
    writer.join().unwrap();
    let size = answered.map(|answer| match answer {
        Answer::Imported { source } => source.virtual_size,
        other => panic!("{other:?}"),
    });
    (target, size)
}

pub(super) fn disk_of(file: &File) -> Vec<u8> {
    let container = catena_blockio::open_container(file.try_clone().unwrap().into(), false).unwrap();
    let problems =
        catena_vhd::check(&*container, &catena_vhd::CheckOptions { parent: None, now: None, deep: true });
    assert!(problems.unwrap().is_empty());
    let image = Image::open(container, Mode::ReadOnly).unwrap();
    let chain = Chain::new(vec![Arc::new(image) as Arc<dyn Layer>]).unwrap();
    let mut disk = vec![0; length(chain.virtual_size().0)];
    chain.read(GuestOffset(0), &mut disk).unwrap();
    disk
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("CATENA_NIGHTLY").is_some() { 300 } else { 12 }))]

    #[test]
    fn any_layout_comes_in_as_it_is(layout in layouts()) {
        let (file, disk) = layout.build();
        let (image, size) = through_a_pipe(file, ImportFormat::Auto);
        prop_assert_eq!(size.unwrap(), Bytes(6 << 21));
        prop_assert!(disk_of(&image) == disk);
    }

    #[test]
    fn no_part_of_a_stream_is_taken_for_the_whole(layout in layouts(), cut in any::<prop::sample::Index>()) {
        let (mut file, _) = layout.build();
        // Without its last byte only, the footer would be one of those that Virtual PC wrote.
        file.truncate(8 + cut.index(file.len() - 9));
        let (_, outcome) = through_a_pipe(file, ImportFormat::Auto);
        prop_assert_eq!(outcome.unwrap_err().kind, TroubleKind::Damaged);
    }

    #[test]
    fn a_damaged_head_is_no_more_than_an_error(layout in layouts(), at in 0..4096usize, byte: u8) {
        let (mut file, _) = layout.build();
        let at = at.min(file.len() - 1);
        file[at] = byte;
        // The image is made or not; nothing panics and nothing hangs.
        drop(through_a_pipe(file, ImportFormat::Vhd));
    }
}

#[test]
fn a_disk_may_turn_out_larger_than_was_guessed() {
    let target = tempfile::tempfile().unwrap();
    let mut fds = Descriptors::new(vec![target.try_clone().unwrap().into()]);
    let (ours, _theirs) = Channel::pair().unwrap();
    let mut supervisor = Supervisor::new(&ours);
    let mut intake = Intake::new(ImageId::random(), 0, None, &mut fds).unwrap();
    let places = [0, 1 << 21, (64u64 << 30) - 1024, 65 << 30, 300 << 30];
    for place in places {
        intake
            .take(GuestOffset(place), Piece::Data(&[place.count_ones() as u8 + 1; 2048]), &mut supervisor)
            .unwrap();
    }
    let end = (300 << 30) + 2048;
    assert_eq!(intake.close(Bytes(end)).unwrap(), Bytes((300 << 30) + (2 << 20)));
    let container = catena_blockio::open_container(target.into(), false).unwrap();
    let problems =
        catena_vhd::check(&*container, &catena_vhd::CheckOptions { parent: None, now: None, deep: true });
    assert!(problems.unwrap().is_empty());
    let image = Image::open(container, Mode::ReadOnly).unwrap();
    assert_eq!(image.info().original_size, image.virtual_size());
    let chain = Chain::new(vec![Arc::new(image) as Arc<dyn Layer>]).unwrap();
    for place in places {
        let mut found = [0; 2048];
        chain.read(GuestOffset(place), &mut found).unwrap();
        assert_eq!(found, [place.count_ones() as u8 + 1; 2048], "at {place}");
    }
}

#[test]
fn past_the_largest_disk_nothing_is_taken() {
    let target = tempfile::tempfile().unwrap();
    let mut fds = Descriptors::new(vec![target.into()]);
    let (ours, _theirs) = Channel::pair().unwrap();
    let mut supervisor = Supervisor::new(&ours);
    let mut intake = Intake::new(ImageId::random(), 0, None, &mut fds).unwrap();
    for piece in [Piece::Data(&[1; 2]), Piece::Data(&[0; 2]), Piece::Zero(Bytes(2))] {
        let past = intake.take(GuestOffset((2040 << 30) - 1), piece, &mut supervisor);
        assert!(matches!(past, Err(Error::OutOfRange(_))), "{piece:?}: {past:?}");
    }
}

#[test]
fn holes_of_a_file_are_not_read() {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(10 << 30).unwrap();
    file.seek(SeekFrom::Start((9 << 30) + 5)).unwrap();
    file.write_all(b"something").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let target = tempfile::tempfile().unwrap();
    let fds: Vec<OwnedFd> = vec![file.into(), target.try_clone().unwrap().into()];
    let (ours, _theirs) = Channel::pair().unwrap();
    let format = ImportFormat::Auto;
    let answered =
        import(format, ImageId::random(), 0, &mut Descriptors::new(fds), &mut Supervisor::new(&ours));
    assert!(matches!(answered.unwrap(), Answer::Imported { source } if source.virtual_size.0 == 10 << 30));
    assert!(target.metadata().unwrap().len() < 4 << 20);
}
