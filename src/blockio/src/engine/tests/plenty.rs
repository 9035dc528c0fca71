//! Thousands under way, and engines that are dropped while the storage works.

use super::{ENGINES, file_in, is_ready, memory, read, run, write};
use crate::engine::Op;
use catena_types::Bytes;
use nix::poll::PollTimeout;
use std::sync::mpsc;

/// More than any ring holds.
const MANY: u64 = 10_000;

#[test]
fn thousands_at_once_all_come_back() {
    for open in ENGINES {
        for (directory, direct) in [
            (std::env::temp_dir().as_path(), true),
            (std::env::temp_dir().as_path(), false),
            (memory(), true),
        ] {
            let container = file_in(directory, direct);
            let mut engine = open();
            let fill = |i: u64| i.to_le_bytes()[0] ^ i.to_le_bytes()[1];
            let writes = (0..MANY).map(|i| write(&container, i * 512, 512, fill(i))).collect();
            assert!(run(&mut *engine, writes).iter().all(|one| one.result.is_ok()));
            assert_eq!(container.size().unwrap(), Bytes(MANY * 512));
            let done = run(&mut *engine, (0..MANY).map(|i| read(&container, i * 512, 512)).collect());
            for (one, i) in done.iter().zip(0..) {
                assert!(one.buf.as_ref().unwrap().iter().all(|&byte| byte == fill(i)), "read {i}");
            }
        }
    }
}

#[test]
fn an_engine_may_be_dropped_at_any_time() {
    for open in ENGINES {
        for direct in [false, true] {
            let container = file_in(&std::env::temp_dir(), direct);
            for kicked in [false, true] {
                let mut engine = open();
                for i in 0..500u64 {
                    engine.submit(i, write(&container, i << 14, 1 << 14, 9));
                    engine.submit(1000 + i, read(&container, i << 14, 1 << 14));
                }
                if kicked {
                    engine.kick().unwrap();
                }
                drop(engine);
            }
            // Nobody writes any more, so nothing changes after this.
            run(&mut *open(), vec![write(&container, 0, 1 << 14, 1)]);
            let back = run(&mut *open(), vec![read(&container, 0, 1 << 14)]);
            assert!(back[0].buf.as_ref().unwrap().iter().all(|&byte| byte == 1));
        }
    }
}

#[test]
fn what_has_begun_is_waited_for_and_what_has_not_never_begins() {
    for open in ENGINES {
        let mut engine = open();
        let (begun, has_begun) = mpsc::channel();
        let (release, wait) = mpsc::channel::<()>();
        let (end, has_ended) = mpsc::channel();
        engine.submit(
            0,
            Op::Call(Box::new(move || {
                begun.send(()).unwrap();
                let _ = wait.recv();
                end.send(()).unwrap();
                Ok(())
            })),
        );
        engine.kick().unwrap();
        has_begun.recv().unwrap();
        let (never, is_never) = mpsc::channel::<()>();
        engine.submit(1, Op::Call(Box::new(move || never.send(()).map_err(std::io::Error::other))));
        drop(release);
        drop(engine);
        assert!(has_ended.try_recv().is_ok());
        assert!(is_never.try_recv().is_err());
    }
}

#[test]
fn a_call_that_waits_holds_no_other_request_up() {
    for open in ENGINES {
        let mut engine = open();
        let (release, wait) = mpsc::channel::<()>();
        engine.submit(7, Op::Call(Box::new(move || wait.recv().map_err(std::io::Error::other))));
        engine.kick().unwrap();
        for directory in [std::env::temp_dir().as_path(), memory()] {
            let container = file_in(directory, true);
            let requests = vec![write(&container, 0, 4096, 1), read(&container, 8192, 700)];
            assert!(run(&mut *engine, requests).iter().all(|one| one.result.is_ok()));
        }
        release.send(()).unwrap();
        let mut done = Vec::new();
        assert!(is_ready(&*engine, PollTimeout::NONE));
        engine.completed(&mut done);
        assert!(done.len() == 1 && done[0].token == 7 && done[0].result.is_ok());
    }
}

#[test]
fn what_was_done_at_once_is_ready_without_a_kick_too() {
    for open in ENGINES {
        let container = file_in(memory(), false);
        let mut engine = open();
        engine.submit(3, write(&container, 0, 4096, 1));
        let mut done = Vec::new();
        engine.completed(&mut done);
        assert_eq!(done.len(), 1);
        engine.kick().unwrap();
        assert!(!is_ready(&*engine, PollTimeout::ZERO));
    }
}

#[test]
fn long_requests_arrive_whole() {
    for open in ENGINES {
        for (directory, direct) in
            [(std::env::temp_dir().as_path(), true), (memory(), false), (memory(), true)]
        {
            let container = file_in(directory, direct);
            let mut engine = open();
            let (whole, odd) = (1 << 20, (1 << 20) + 77);
            let writes = vec![write(&container, 0, whole, 1), write(&container, 1 << 20, odd, 2)];
            assert!(run(&mut *engine, writes).iter().all(|one| one.result.is_ok()));
            let done = run(&mut *engine, vec![read(&container, 100, whole), read(&container, 0, 4 << 20)]);
            let seen: Vec<_> = done.iter().map(|one| one.buf.as_ref().unwrap()).collect();
            assert!(seen[0][..whole - 100].iter().all(|&byte| byte == 1));
            assert!(seen[0][whole - 100..].iter().all(|&byte| byte == 2));
            assert!(seen[1][..whole].iter().all(|&byte| byte == 1));
            assert!(seen[1][whole..whole + odd].iter().all(|&byte| byte == 2));
            assert!(seen[1][whole + odd..].iter().all(|&byte| byte == 0));
        }
    }
}
