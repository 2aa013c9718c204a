use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::component::Component;
use super::engine::Transfers;
use super::operation::{Operation, Request};
use super::threads::Pool;
use super::uring::{Flavour, Ring};
use crate::buffer::arena::Arena;
use crate::buffer::{BLOCK_BYTES, Buffer};
use crate::completion::{Completion, completion};
use crate::error::{EngineError, ErrorKind};

const ARENA_BYTES: usize = 256 << 10;

/// A "device" that answers a read only when somebody writes to the other end.
fn hanging() -> (Rc<Component>, File) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let (file, name) = (File::from(reader), "pipe".into());
    let component = Component { file, name, len_bytes: 1 << 20, keeps_durable_writes: true };
    (Rc::new(component), File::from(writer))
}

fn read(component: &Rc<Component>) -> (Operation, Completion<Buffer>) {
    let (done, completion) = completion();
    let request = Request::Read { offset_bytes: 0, buffer: Buffer::zeroed(BLOCK_BYTES), done: Some(done) };
    (Operation::new(Rc::clone(component), Rc::default(), request, BLOCK_BYTES), completion)
}

/// Turns the ring until it answers.
fn outcome(ring: &Ring, completion: Completion<Buffer>) -> Result<Buffer, EngineError> {
    let mut completion = std::pin::pin!(completion);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        ring.wait(Some(Duration::from_millis(5)));
        ring.turn();
        ring.expire(Instant::now());
        if let std::task::Poll::Ready(result) = completion.as_mut().poll(&mut context) {
            return result;
        }
    }
}

#[test]
fn a_request_that_times_out_fails_and_keeps_its_memory_until_the_answer() {
    let (ring, _kick) = Ring::new(Flavour::Newest, ARENA_BYTES).unwrap();
    let (component, mut writer) = hanging();
    let (operation, completion) = read(&component);
    let started = Instant::now();
    ring.start(operation, Some(started + Duration::from_millis(30)));
    let error = outcome(&ring, completion).unwrap_err();
    assert!(started.elapsed() >= Duration::from_millis(30));
    assert_eq!((error.kind, error.found.as_str()), (ErrorKind::Failed, "timed out"));
    // The operation, and so the component and the memory, is still there.
    assert_eq!(Rc::strong_count(&component), 2);

    // The late answer is taken in, and the place is free for the next request.
    writer.write_all(&[1; 100]).unwrap();
    while Rc::strong_count(&component) > 1 {
        ring.wait(Some(Duration::from_millis(5)));
        ring.turn();
    }
    let (operation, completion) = read(&component);
    ring.start(operation, None);
    writer.write_all(&[2; BLOCK_BYTES]).unwrap();
    assert_eq!(outcome(&ring, completion).unwrap()[..], [2; BLOCK_BYTES]);
}

#[test]
fn a_request_that_times_out_unsubmitted_or_not_leaves_others_alone() {
    let (ring, _kick) = Ring::new(Flavour::Newest, ARENA_BYTES).unwrap();
    let (stuck, stuck_writer) = hanging();
    let (good, mut writer) = hanging();
    let (operation, stuck_completion) = read(&stuck);
    ring.start(operation, Some(Instant::now()));
    let (operation, completion) = read(&good);
    ring.start(operation, Some(Instant::now() + Duration::from_secs(10)));
    writer.write_all(&[3; BLOCK_BYTES]).unwrap();
    assert_eq!(outcome(&ring, completion).unwrap()[..], [3; BLOCK_BYTES]);
    assert!(outcome(&ring, stuck_completion).is_err());
    // Lets the ring end without waiting for the stuck one.
    drop(stuck_writer);
}

#[test]
fn a_ring_dropped_with_a_request_that_hangs_leaves_its_memory_alone() {
    for arena_bytes in [0, ARENA_BYTES] {
        let (mut ring, _kick) = Ring::new(Flavour::Newest, arena_bytes).unwrap();
        let (component, mut writer) = hanging();
        let (operation, completion) = read(&component);
        ring.start(operation, None);
        ring.turn();
        let has_arena = ring.has_arena();
        ring.set_drop_wait(Duration::from_millis(50));
        let started = Instant::now();
        drop(ring);
        assert!(started.elapsed() < Duration::from_secs(2));
        // The operation is still there, and with it the memory that it reads into.
        assert_eq!(Rc::strong_count(&component), 2);
        assert_eq!(Arena::of_this_thread().is_some(), has_arena);
        // An answer that comes now hurts nobody.
        let mut others: Vec<Buffer> = (0..64).map(|_| Buffer::zeroed(BLOCK_BYTES)).collect();
        let _ = writer.write_all(&[5; BLOCK_BYTES]);
        std::thread::sleep(Duration::from_millis(20));
        assert!(others.iter().all(|buffer| buffer.iter().all(|byte| *byte == 0)));
        others.iter_mut().for_each(|buffer| buffer.fill(1));
        drop(completion);
    }
}

#[test]
fn a_pool_dropped_with_a_request_that_hangs_leaves_its_memory_alone() {
    // Without threads nobody answers.
    let (mut pool, _kick) = Pool::new(0).unwrap();
    let (component, _writer) = hanging();
    let (operation, completion) = read(&component);
    pool.start(operation, None);
    pool.set_drop_wait(Duration::from_millis(50));
    let started = Instant::now();
    drop(pool);
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(50) && elapsed < Duration::from_secs(2), "{elapsed:?}");
    assert_eq!(Rc::strong_count(&component), 2);
    drop(completion);
}

#[test]
fn a_request_that_hangs_and_times_out_keeps_its_registered_memory() {
    let (ring, _kick) = Ring::new(Flavour::Newest, ARENA_BYTES).unwrap();
    let (component, mut writer) = hanging();
    let (operation, completion) = read(&component);
    ring.start(operation, Some(Instant::now()));
    assert!(outcome(&ring, completion).is_err());
    // All that is left, and one more from the heap: none of it is what the late answer goes to.
    let others: Vec<Buffer> = (0..64).map(|_| Buffer::zeroed(BLOCK_BYTES)).collect();
    writer.write_all(&[5; BLOCK_BYTES]).unwrap();
    while Rc::strong_count(&component) > 1 {
        ring.wait(Some(Duration::from_millis(5)));
        ring.turn();
    }
    assert!(others.iter().all(|buffer| buffer.iter().all(|byte| *byte == 0)));
}

#[test]
fn the_rings_of_a_thread_share_their_arena() {
    let (first, _kick) = Ring::new(Flavour::Newest, ARENA_BYTES).unwrap();
    if !first.has_arena() {
        eprintln!("skipped: the kernel refuses to lock {ARENA_BYTES} bytes");
        return;
    }
    let arena = Arena::of_this_thread().unwrap();
    let (second, _kick) = Ring::new(Flavour::Plain, 2 * ARENA_BYTES).unwrap();
    assert!(second.has_arena());
    assert!(Rc::ptr_eq(&arena, &Arena::of_this_thread().unwrap()));
    assert_eq!(arena.len_bytes(), ARENA_BYTES);
    for ring in [&first, &second] {
        let (component, mut writer) = hanging();
        let (operation, completion) = read(&component);
        ring.start(operation, None);
        writer.write_all(&[6; BLOCK_BYTES]).unwrap();
        let buffer = outcome(ring, completion).unwrap();
        assert!(arena.contains(buffer.as_ptr(), buffer.len()));
        assert_eq!(buffer[..], [6; BLOCK_BYTES]);
    }
    drop((first, second, arena));
    assert!(Arena::of_this_thread().is_none());
}

#[test]
fn more_than_may_be_locked_is_registered_in_part_or_not_at_all() {
    // More than the kernel takes in one piece.
    let (ring, _kick) = Ring::new(Flavour::Newest, 8 << 30).unwrap();
    assert_eq!(ring.has_arena(), Arena::of_this_thread().is_some());
    if let Some(arena) = Arena::of_this_thread() {
        assert!(arena.len_bytes() < 8 << 30);
    }
    let (component, mut writer) = hanging();
    let (operation, completion) = read(&component);
    ring.start(operation, None);
    writer.write_all(&[7; BLOCK_BYTES]).unwrap();
    assert_eq!(outcome(&ring, completion).unwrap()[..], [7; BLOCK_BYTES]);
}

/// A doorbell that tells when nobody holds it any more.
struct Bell(Rc<nix::sys::eventfd::EventFd>);

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[test]
fn a_descriptor_that_is_watched_no_more_is_let_go_of_though_it_was_rung_at_that_moment() {
    let (ring, _kick) = Ring::new(Flavour::Newest, 0).unwrap();
    let event = Rc::new(nix::sys::eventfd::EventFd::new().unwrap());
    let turn = || {
        ring.wait(Some(Duration::from_millis(1)));
        ring.turn();
    };
    for _ in 0..10 {
        let Some(number) = ring.watch(Box::new(Bell(Rc::clone(&event)))) else { return };
        turn();
        // The kernel has not said so yet when it is asked to forget.
        event.write(1).unwrap();
        ring.unwatch(number);
        let give_up = Instant::now() + Duration::from_secs(5);
        while Rc::strong_count(&event) > 1 && Instant::now() < give_up {
            turn();
        }
        assert_eq!(Rc::strong_count(&event), 1);
    }
}
