use std::fs::File;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::component::Component;
use super::engine::Transfers;
use super::operation::{Operation, Request};
use super::uring::Ring;
use crate::buffer::{BLOCK_BYTES, Buffer};
use crate::completion::{Completion, completion};
use crate::error::{EngineError, ErrorKind};

/// A "device" that answers a read only when somebody writes to the other end.
fn hanging() -> (Rc<Component>, File) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let component = Component { file: File::from(reader), name: "pipe".into(), len_bytes: 1 << 20 };
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
        ring.expire(Instant::now());
        if let std::task::Poll::Ready(result) = completion.as_mut().poll(&mut context) {
            return result;
        }
    }
}

#[test]
fn a_request_that_times_out_fails_and_keeps_its_memory_until_the_answer() {
    let (ring, _kick) = Ring::new().unwrap();
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
    }
    let (operation, completion) = read(&component);
    ring.start(operation, None);
    writer.write_all(&[2; BLOCK_BYTES]).unwrap();
    assert_eq!(outcome(&ring, completion).unwrap()[..], [2; BLOCK_BYTES]);
}

#[test]
fn a_request_that_times_out_unsubmitted_or_not_leaves_others_alone() {
    let (ring, _kick) = Ring::new().unwrap();
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
