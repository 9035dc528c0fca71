//! An image that is written while it is read: what is noted, on its way and stored, and what each plan does to the storage.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_blockio::sim::{SimDisk, SimWorld};
use catena_blockio::{Container, Sizing};
use catena_chain::{Commit, Known, Layer, LayerMut, LiveLayer, Recall, Step};
use catena_types::{BlockIndex, Bytes, FileOffset, SectorSet};
use catena_vhd::{CreateSpec, Error, Image, Mode, create};
use proptest::prelude::*;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use support::model::{Mark, Model, use_again};
use support::{MIB, child_spec, errors, parent, read_block, spec};

fn disk(spec: &CreateSpec, sizing: Sizing) -> Arc<SimDisk> {
    let world = SimWorld::new();
    let disk = match sizing {
        Sizing::Automatic => SimDisk::automatic(&world),
        Sizing::Explicit => SimDisk::used(&world, Bytes(64 << 20)),
    };
    create(&*disk, spec).unwrap();
    disk
}

fn open(disk: &Arc<SimDisk>) -> Box<Image> {
    Box::new(Image::open(disk.clone(), Mode::ReadWrite).unwrap())
}

/// Writes as the owner of a live image does.
fn try_write(image: &mut Image, block: u32, sectors: Range<usize>, fill: u8) -> io::Result<()> {
    let placed = LiveLayer::place(image, BlockIndex(block)).unwrap();
    placed.first.run(image.container())?;
    let at = FileOffset(placed.at.0 + sectors.start as u64 * 512);
    image.container().write_at(&vec![fill; sectors.len() * 512], at)?;
    LiveLayer::wrote(image, BlockIndex(block), &SectorSet::of(sectors)).unwrap();
    Ok(())
}

fn write(image: &mut Image, block: u32, sectors: Range<usize>, fill: u8) {
    try_write(image, block, sectors, fill).unwrap();
}

fn carry_out(image: &mut Image, commit: Commit) {
    commit.plan.run(image.container()).unwrap();
    image.end_commit(commit, true).unwrap();
}

fn commit(image: &mut Image) {
    let commit = image.begin_commit().unwrap().unwrap();
    carry_out(image, commit);
}

fn owned(image: &Image, block: u32) -> SectorSet {
    image.ownership(BlockIndex(block)).unwrap().to_set()
}

#[test]
fn sectors_that_come_during_a_commit_wait_for_the_next() {
    let disk = disk(&child_spec(16), Sizing::Automatic);
    let mut image = open(&disk);
    write(&mut image, 3, 0..8, 1);
    let first = image.begin_commit().unwrap().unwrap();
    assert!(image.begin_commit().unwrap().is_none(), "one at a time");
    write(&mut image, 3, 8..16, 2);
    write(&mut image, 4, 0..8, 3);
    assert_eq!(owned(&image, 3), SectorSet::of(0..16));
    let noted = image.noted();
    assert_eq!(noted.iter().map(|noted| noted.new).collect::<Vec<_>>(), [true, true]);
    carry_out(&mut image, first);
    let stored =
        |disk: &Arc<SimDisk>| owned(&Image::open(disk.after_power_cut(1), Mode::ReadOnly).unwrap(), 3);
    assert_eq!(stored(&disk), SectorSet::of(0..8), "D1: the others had no barrier yet");
    let noted = image.noted();
    assert_eq!((noted[0].new, &noted[0].sectors), (false, &SectorSet::of(8..16)));
    assert!(noted[1].new);
    commit(&mut image);
    assert_eq!(stored(&disk), SectorSet::of(0..16));
    assert_eq!(image.noted(), []);
    let idle = image.begin_commit().unwrap().unwrap();
    assert_eq!(idle.plan.steps(), [Step::Barrier]);
    carry_out(&mut image, idle);
}

#[test]
fn a_successor_restores_what_was_noted() {
    for sizing in [Sizing::Automatic, Sizing::Explicit] {
        let disk = disk(&spec(16), sizing);
        let mut image = open(&disk);
        write(&mut image, 1, 0..8, 1);
        commit(&mut image);
        write(&mut image, 1, 8..16, 2);
        write(&mut image, 5, 4..5, 3);
        write(&mut image, 6, 4..5, 4);
        // A part was stored, and the writer died before it knew.
        let under_way = image.begin_commit().unwrap().unwrap();
        write(&mut image, 6, 9..10, 5);
        let noted = image.noted();
        under_way.plan.run(image.container()).unwrap();
        drop(image);
        for mut noted in [noted.clone(), noted.into_iter().rev().collect()] {
            let after: Arc<dyn Container> = disk.after_process_kill();
            let mut image = Image::open(after.clone(), Mode::ReadWrite).unwrap();
            image.restore(&noted).unwrap();
            write(&mut image, 2, 0..1, 6);
            commit(&mut image);
            drop(image);
            assert_eq!(errors(&*after), []);
            let image = Image::open(after.clone(), Mode::ReadOnly).unwrap();
            assert_eq!(owned(&image, 1), SectorSet::of(0..16));
            assert_eq!(owned(&image, 6), SectorSet::of(4..5).union(&SectorSet::of(9..10)));
            assert_eq!(read_block(&[&image], 6)[9 * 512], 5);
            // What names another place is refused, and so is a place where something else is.
            let mut image = Image::open(after, Mode::ReadWrite).unwrap();
            noted[0].place.0 += 512;
            assert!(image.restore(&noted[..1]).is_err());
            noted[1].block = BlockIndex(7);
            noted[1].new = true;
            assert!(image.restore(&noted[1..2]).is_err(), "another block lies there");
        }
    }
}

#[test]
fn most_new_blocks_need_nothing_done_before_their_data() {
    let disk = disk(&child_spec(400), Sizing::Automatic);
    let mut image = open(&disk);
    let first = |image: &mut Image, block| LiveLayer::place(image, BlockIndex(block)).unwrap().first;
    let asked = first(&mut image, 0);
    assert!(matches!(asked.steps(), [Step::Write { .. }]), "a footer far ahead");
    assert_eq!(first(&mut image, 1), asked, "it may not stand yet");
    asked.run(image.container()).unwrap();
    assert!(first(&mut image, 0).is_empty(), "only the first who asks is told");
    let told = (2..190).filter(|&block| !first(&mut image, block).is_empty()).count();
    assert_eq!(told, 190 - 64, "nobody has said that the second footer stands, or the third");
    LiveLayer::wrote(&mut *image, BlockIndex(150), &SectorSet::of(0..1)).unwrap();
    assert!(first(&mut image, 190).is_empty(), "who writes says so too");
    image.unplace(BlockIndex(100)).unwrap();
    commit(&mut image);
    let plan = LiveLayer::close(&mut *image).unwrap();
    plan.run(image.container()).unwrap();
    let last = image.locate(BlockIndex(150)).unwrap();
    assert_eq!(disk.size().unwrap().0, last.at.0 + 2 * MIB + 512, "what was not used is cut off");
    drop(image);
    assert_eq!(errors(&*disk), []);
}

#[test]
fn what_a_killed_writer_gave_up_is_durably_gone_before_its_place_is_used_again() {
    let disk = disk(&child_spec(16), Sizing::Automatic);
    let mut image = open(&disk);
    write(&mut image, 0, 0..8, 1);
    write(&mut image, 1, 0..8, 2);
    commit(&mut image);
    let place = image.locate(BlockIndex(1)).unwrap().at;
    let plan = image.begin_give_up(&[(BlockIndex(1), SectorSet::full())]).unwrap().plan;
    let until_barrier = plan.steps().iter().take_while(|step| **step != Step::Barrier);
    for step in until_barrier {
        let Step::Write { at, bytes } = step else { panic!("{step:?}") };
        image.container().write_at(bytes, *at).unwrap();
    }
    drop(image);
    let world_after = disk.after_process_kill();
    let mut image = Image::open(world_after.clone(), Mode::ReadWrite).unwrap();
    let nothing = image.begin_give_up(&[(BlockIndex(3), SectorSet::full())]).unwrap();
    assert!(nothing.plan.is_empty());
    image.end_give_up(nothing, true).unwrap();
    let placed = LiveLayer::place(&mut image, BlockIndex(2)).unwrap();
    assert_eq!(placed.at, place);
    placed.first.run(image.container()).unwrap();
    image.container().write_at(&[9; 512], placed.at).unwrap();
    for seed in 0..40 {
        let cut = Image::open(world_after.after_power_cut(seed), Mode::ReadOnly).unwrap();
        let of_block = owned(&cut, 1).contains(0).then(|| read_block(&[&cut], 1)[0]);
        assert!(matches!(of_block, None | Some(2)), "{of_block:?} with seed {seed}");
    }
}

#[test]
fn what_is_given_up_leaves_what_was_noted_beside_it() {
    for spec in [spec(16), child_spec(16)] {
        let disk = disk(&spec, Sizing::Automatic);
        let mut image = open(&disk);
        write(&mut image, 0, 0..8, 1);
        write(&mut image, 1, 0..8, 2);
        commit(&mut image);
        write(&mut image, 0, 20..21, 3);
        assert!(image.begin_give_up(&[(BlockIndex(0), SectorSet::of(20..21))]).is_err());
        let all = [(BlockIndex(0), SectorSet::of(0..8)), (BlockIndex(1), SectorSet::of(0..8))];
        let give_up = image.begin_give_up(&all).unwrap();
        assert!(image.begin_commit().unwrap().is_none());
        // Both blocks go on being used; the second one elsewhere.
        write(&mut image, 0, 30..31, 4);
        write(&mut image, 1, 30..31, 5);
        give_up.plan.run(image.container()).unwrap();
        image.end_give_up(give_up, true).unwrap();
        commit(&mut image);
        for image in [&*image, &Image::open(disk.after_power_cut(1), Mode::ReadOnly).unwrap()] {
            assert_eq!(owned(image, 0), SectorSet::of(20..21).union(&SectorSet::of(30..31)));
            assert_eq!(owned(image, 1), SectorSet::of(30..31));
            assert_eq!((read_block(&[image], 0)[30 * 512], read_block(&[image], 1)[30 * 512]), (4, 5));
        }
        assert_eq!(errors(&*disk), []);
    }
}

#[test]
fn bitmaps_are_told_and_not_read() {
    let disk = disk(&child_spec(16), Sizing::Automatic);
    let mut image = open(&disk);
    write(&mut image, 3, 0..8, 1);
    commit(&mut image);
    drop(image);
    let mut image = open(&disk);
    let reads = disk.after_process_kill();
    assert_eq!(image.known(BlockIndex(0)).unwrap(), Known::Nothing);
    let Known::At(at) = image.known(BlockIndex(3)).unwrap() else { panic!("nothing was read yet") };
    let mut raw = [0; 512];
    reads.read_at(&mut raw, at.at).unwrap();
    image.learn(BlockIndex(3), at.at, &raw).unwrap();
    assert_eq!(image.known(BlockIndex(3)).unwrap(), Known::Sectors(Box::new(SectorSet::of(0..8))));
    write(&mut image, 3, 8..9, 2);
    image.learn(BlockIndex(3), at.at, &raw).unwrap();
    assert_eq!(image.known(BlockIndex(3)).unwrap(), Known::Sectors(Box::new(SectorSet::of(0..9))));
    image.learn(BlockIndex(0), at.at, &raw).unwrap();
    assert_eq!(image.known(BlockIndex(0)).unwrap(), Known::Nothing);
}

#[test]
fn a_leaf_becomes_a_base_that_another_process_seals() {
    let disk = disk(&child_spec(16), Sizing::Automatic);
    let mut image = open(&disk);
    write(&mut image, 2, 0..4096, 1);
    write(&mut image, 3, 0..4, 2);
    assert!(LiveLayer::close(&mut *image).is_err(), "not committed yet");
    commit(&mut image);
    let mut reader = image;
    reader.end_writing(disk.clone()).unwrap();
    assert!(LiveLayer::place(&mut *reader, BlockIndex(0)).is_err(), "no more");
    let mut sealer = open(&disk);
    sealer.seal().unwrap();
    sealer.set_hidden(true).unwrap();
    drop(sealer);
    assert_eq!(reader.known(BlockIndex(2)).unwrap(), Known::Everything);
    assert_eq!(reader.known(BlockIndex(3)).unwrap(), Known::Sectors(Box::new(SectorSet::of(0..4))));
    assert!(reader.locate(BlockIndex(3)).is_some());
}

#[test]
fn a_failed_plan_stops_all_changes_and_no_reads() {
    let disk = disk(&child_spec(16), Sizing::Automatic);
    let mut image = open(&disk);
    write(&mut image, 2, 0..4, 1);
    let commit = image.begin_commit().unwrap().unwrap();
    image.end_commit(commit, false).unwrap();
    assert_eq!(owned(&image, 2), SectorSet::of(0..4));
    let failed = Error::Failed.to_string();
    assert_eq!(LiveLayer::place(&mut *image, BlockIndex(3)).unwrap_err().to_string(), failed);
    assert_eq!(image.begin_commit().unwrap_err().to_string(), failed);
    assert_eq!(LayerMut::flush(&mut *image).unwrap_err().to_string(), failed);
}

#[test]
fn an_image_in_use_is_marked_hidden_and_visible() {
    let disk = disk(&spec(16), Sizing::Automatic);
    let mut image = open(&disk);
    let hidden = || Image::open(disk.clone(), Mode::ReadOnly).unwrap().info().hidden;
    // A footer that is on its way to another place still says the old.
    let placed = LiveLayer::place(&mut *image, BlockIndex(0)).unwrap();
    assert!(!placed.first.is_empty() && LiveLayer::set_hidden(&mut *image, true).is_err());
    placed.first.run(&*disk).unwrap();
    write(&mut image, 0, 0..8, 1);
    LiveLayer::set_hidden(&mut *image, true).unwrap().run(&*disk).unwrap();
    assert!(hidden());
    write(&mut image, 3, 0..8, 1);
    commit(&mut image);
    assert!(hidden(), "a commit takes nothing back");
    LiveLayer::set_hidden(&mut *image, false).unwrap().run(&*disk).unwrap();
    commit(&mut image);
    LiveLayer::close(&mut *image).unwrap().run(&*disk).unwrap();
    drop(image);
    let image = Image::open(disk.clone(), Mode::ReadOnly).unwrap();
    assert!(!image.info().hidden);
    assert!(errors(&*disk).is_empty());
}

#[test]
fn a_header_is_patched_and_a_disk_grows_while_it_is_open() {
    let disk = disk(&child_spec(16), Sizing::Automatic);
    let mut image = open(&disk);
    write(&mut image, 2, 0..4, 1);
    commit(&mut image);
    let mut new = parent("another.vhd");
    new.id = catena_types::ImageId::from_bytes([3; 16]);
    let writes = image.plan_reparent(&new).unwrap();
    image.patch(&writes).unwrap().run(&*disk).unwrap();
    assert_eq!(image.info().parent.unwrap().id, new.id);
    write(&mut image, 3, 0..4, 2);
    assert!(LiveLayer::grow(&mut *image, Bytes(9000 * MIB)).is_err());
    commit(&mut image);
    let grown = LiveLayer::grow(&mut *image, Bytes(9000 * MIB)).unwrap()().unwrap();
    grown.outcome.unwrap();
    let mut image = grown.layer;
    let placed = image.place(BlockIndex(4400)).unwrap();
    placed.first.run(&*disk).unwrap();
    disk.write_at(&[3; 2048], placed.at).unwrap();
    image.wrote(BlockIndex(4400), &SectorSet::of(0..4)).unwrap();
    let last = image.begin_commit().unwrap().unwrap();
    last.plan.run(&*disk).unwrap();
    drop(image);
    let again = Image::open(disk.after_power_cut(3), Mode::ReadOnly).unwrap();
    assert_eq!((again.virtual_size(), again.info().parent.unwrap().id), (Bytes(9000 * MIB), new.id));
    assert_eq!([2, 3, 4400].map(|block| owned(&again, block)), [0; 3].map(|_| SectorSet::of(0..4)));
}

/// What the owner of a live image does.
#[derive(Debug, Clone)]
enum Do {
    Write(u32, Range<usize>, u8),
    Begin,
    End,
    GiveUp(u32, Range<usize>),
}

/// An image that is being served, with what may be found on the storage.
struct Served {
    image: Box<Image>,
    model: Model,
    under_way: Option<(Commit, Mark)>,
}

impl Served {
    /// Fails when the machine crashes.
    fn run(&mut self, step: &Do) -> io::Result<()> {
        match step {
            Do::Write(block, sectors, fill) => {
                self.model.writes(*block, sectors.clone(), *fill);
                try_write(&mut self.image, *block, sectors.clone(), *fill)
            }
            Do::Begin => {
                if let Some(commit) = self.image.begin_commit().unwrap() {
                    self.under_way = Some((commit, self.model.mark()));
                }
                Ok(())
            }
            Do::End => {
                let Some((commit, mark)) = self.under_way.take() else { return Ok(()) };
                commit.plan.run(self.image.container())?;
                self.image.end_commit(commit, true).unwrap();
                self.model.settle_until(&mark);
                Ok(())
            }
            Do::GiveUp(block, sectors) => {
                self.run(&Do::End)?;
                self.run(&Do::Begin)?;
                self.run(&Do::End)?;
                let give_up = [(BlockIndex(*block), SectorSet::of(sectors.clone()))];
                let give_up = self.image.begin_give_up(&give_up).unwrap();
                self.model.gives_up(*block, sectors);
                give_up.plan.run(self.image.container())?;
                self.image.end_give_up(give_up, true).unwrap();
                self.model.settle_until(&self.model.mark());
                Ok(())
            }
        }
    }
}

fn step() -> impl Strategy<Value = Do> {
    let range = || (0usize..40, 1usize..20).prop_map(|(start, len)| start..start + len);
    prop_oneof![
        6 => (0u32..6, range(), 1u8..=255).prop_map(|(block, range, fill)| Do::Write(block, range, fill)),
        2 => Just(Do::Begin),
        2 => Just(Do::End),
        1 => (0u32..6, prop_oneof![range(), Just(0..4096)]).prop_map(|(block, range)| Do::GiveUp(block, range)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_live_steps_and_any_crash(
        steps in prop::collection::vec(step(), 1..40),
        device in any::<bool>(),
        child in any::<bool>(),
        crash in prop::option::of(0u64..100),
    ) {
        let sizing = if device { Sizing::Explicit } else { Sizing::Automatic };
        let disk = disk(&if child { child_spec(12) } else { spec(12) }, sizing);
        let model = Model::new(12 * MIB);
        let mut served = Served { image: open(&disk), model, under_way: None };
        let world = disk.world();
        if let Some(crash) = crash {
            world.crash_at(world.calls() + crash);
        }
        let outcome = steps.iter().try_for_each(|step| {
            let done = served.run(step);
            if crash.is_none() {
                served.model.clone().settled().verify_image(&served.image, "while open");
            }
            done
        });
        let Served { image, model, .. } = served;
        let noted = image.noted();
        drop(image);
        let killed: Arc<dyn Container> = disk.after_process_kill();
        model.verify(&killed, "after a kill");
        let mut successor = Image::open(killed, Mode::ReadWrite).unwrap();
        successor.restore(&noted).unwrap();
        if outcome.is_ok() {
            model.clone().settled().verify_image(&successor, "restored");
        }
        for seed in 0..4 {
            let survivor: Arc<dyn Container> = disk.after_power_cut(seed);
            model.verify(&survivor, "after a power cut");
            if seed == 0 {
                use_again(&model, &survivor, "after a power cut");
            }
        }
    }
}

/// As the owner of a served disk asks, reading what the image wants to be read.
fn recall(image: &Image, storage: &SimDisk, block: u32) -> (Known, usize) {
    let mut reads = 0;
    loop {
        match image.known(BlockIndex(block)).unwrap() {
            Known::At(wanted) => {
                let mut raw = vec![0; wanted.len as usize];
                storage.read_at(&mut raw, wanted.at).unwrap();
                image.learn(BlockIndex(block), wanted.at, &raw).unwrap();
                reads += 1;
            }
            known => return (known, reads),
        }
    }
}

#[test]
fn of_a_large_table_only_what_is_asked_for_is_read() {
    let disk = disk(&spec(40 << 10), Sizing::Automatic);
    let mut image = open(&disk);
    let written = [0, 4095, 4096, 9000, 20479];
    for block in written {
        write(&mut image, block, 0..8, 1);
    }
    commit(&mut image);
    let recalled = Image::open(disk.clone(), Mode::Recall).unwrap();
    // A piece of the table has 4096 entries; then the bitmap.
    for (block, reads) in [(0, 2), (4095, 1), (1, 0), (4096, 2), (5000, 0), (20479, 2), (20000, 0), (9000, 2)]
    {
        let (known, read) = recall(&recalled, &disk, block);
        assert_eq!(read, reads, "block {block}");
        let owned = written.contains(&block).then(|| Known::Sectors(Box::new(SectorSet::of(0..8))));
        assert_eq!(known, owned.unwrap_or(Known::Nothing), "block {block}");
        assert_eq!(recalled.locate(BlockIndex(block)), image.locate(BlockIndex(block)));
    }
    assert_eq!(recalled.known(BlockIndex(20480)).unwrap(), Known::Nothing, "past the end of the disk");
}

#[test]
fn what_waits_for_the_table_may_do_so_and_what_is_not_known_may_be_there() {
    let disk = disk(&spec(40 << 10), Sizing::Automatic);
    let mut image = open(&disk);
    write(&mut image, 9000, 0..8, 1);
    commit(&mut image);
    let recalled = Image::open(disk, Mode::Recall).unwrap();
    assert_eq!(recalled.next_block(BlockIndex(7)), Some(BlockIndex(7)));
    for block in [7, 4100, 9000, 12288, 20479] {
        assert_eq!(owned(&recalled, block), owned(&image, block), "block {block}");
    }
    assert_eq!(recalled.next_block(BlockIndex(0)), Some(BlockIndex(9000)));
    assert_eq!(recalled.next_block(BlockIndex(9001)), None);
}

#[test]
fn a_block_that_a_merge_has_appended_since_is_no_damage_and_one_past_the_end_is() {
    let disk = disk(&spec(64), Sizing::Automatic);
    let mut image = open(&disk);
    let recalled = [(); 2].map(|()| Image::open(disk.clone(), Mode::Recall).unwrap());
    write(&mut image, 3, 0..4096, 1);
    commit(&mut image);
    assert_eq!(recall(&recalled[0], &disk, 3).0, Known::Everything);
    assert_eq!(recalled[0].locate(BlockIndex(3)), image.locate(BlockIndex(3)));
    let Known::At(piece) = recalled[1].known(BlockIndex(3)).unwrap() else { panic!("nothing was read yet") };
    let mut raw = vec![0xff; piece.len as usize];
    raw[12..16].copy_from_slice(&(1_u32 << 20).to_be_bytes());
    recalled[1].learn(BlockIndex(3), piece.at, &raw).unwrap();
    let refused = recalled[1].known(BlockIndex(3)).unwrap_err();
    assert!(refused.to_string().contains("past the end of the container"), "{refused}");
}
