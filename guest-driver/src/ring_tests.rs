#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use ringfort_protocol::command::{Area, Opcode};
use ringfort_protocol::ring::layout::RingLayout;
use ringfort_protocol::ring::requester::Requester;
use ringfort_protocol::ring::responder::Responder;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use super::*;
use crate::memory::{self, in_child};

const SLOTS: u32 = 8;

/// A ring in memory that a child shares, too, and the server's end of it.
fn ends() -> (Arc<Ring>, Server) {
    let (memory, _) = memory::shareable(1 << 18).unwrap();
    let layout = RingLayout::new(0, SLOTS, memory.len_bytes()).unwrap();
    let data = Area { start: 1 << 13, len_bytes: 1 << 17 };
    let lane = Lane::new(Requester::new(memory.clone(), layout), memory.clone(), data);
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let (wake, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let gone = Arc::new(AtomicBool::new(false));
    let bell = Bell::of_event(doorbell, wake).unwrap();
    let ring =
        Ring::new(lane, bell, Patience::new(Duration::from_micros(20), Duration::ZERO), Arc::clone(&gone));
    (Arc::new(ring), Server { responder: Responder::new(memory.clone(), layout), memory, wake: theirs, gone })
}

/// The other side. It never sleeps, so that it needs no doorbell of its own.
struct Server {
    responder: Responder<SharedMemory>,
    memory: SharedMemory,
    wake: OwnedFd,
    gone: Arc<AtomicBool>,
}

impl Server {
    fn take(&mut self) -> Option<Command> {
        self.responder.take().map(|slot| Command::decode(slot).unwrap())
    }

    fn wait_for(&mut self) -> Command {
        loop {
            if let Some(command) = self.take() {
                return command;
            }
            thread::yield_now();
        }
    }

    fn answer(&mut self, completion: &Completion) {
        self.responder.complete(&completion.encode());
        if self.responder.wants_doorbell() {
            // A client that has taken none of many rings will hear these.
            match send(&self.wake, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(errno) => panic!("ring the client: {errno}"),
            }
        }
    }

    /// Gives back the value, and the command's tag in its output.
    fn carry_out(&mut self, command: &Command) {
        let room = command.output.len_bytes as usize;
        let output = vec![command.value as u8; room];
        self.memory.write(command.output.start.into(), &output).unwrap();
        self.answer(&Completion {
            tag: command.tag,
            value: command.value,
            output_bytes: command.output.len_bytes,
            ..Completion::default()
        });
    }

    /// Carries out all, `held` of them at a time and the oldest of these last, until the sender is dropped.
    fn serve(mut self, held: usize) -> (JoinHandle<Self>, mpsc::Sender<()>) {
        let (ends, ended) = mpsc::channel::<()>();
        let serving = thread::spawn(move || {
            let mut commands = Vec::new();
            let mut idle = 0;
            while ended.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
                match self.take() {
                    Some(command) => {
                        commands.push(command);
                        idle = 0;
                    }
                    None => idle += 1,
                }
                // Those who wait may be all who would submit more.
                if (commands.len() > held || idle > 50)
                    && let Some(command) = commands.pop()
                {
                    self.carry_out(&command);
                }
                if idle > 50 {
                    thread::yield_now();
                }
            }
            self
        });
        (serving, ends)
    }
}

fn nop(value: u64) -> Command {
    Command { value, ..Command::new(Opcode::Nop, 0, 0) }
}

fn lock() -> Command {
    Command::new(Opcode::SetLock, 0, 0)
}

fn exchange(deadline: Option<Instant>) -> Exchange<'static> {
    Exchange { input: &[], output_bytes: 0, deadline }
}

fn call(ring: &Ring, command: Command, deadline: Option<Instant>) -> Result<Completion, Error> {
    ring.call(ring.lock_idle()?, command, &exchange(deadline), |completion, _, _| *completion)
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(30))
}

/// Waits for a future on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

async fn task(ring: &Arc<Ring>, value: u64) -> Result<u64, Error> {
    ring.start(nop(value), &[], 0).await?.finish(|completion, _, _| completion.value).await
}

/// Those that wait, and those among them that wait for room.
fn tasks_of(ring: &Ring) -> (usize, usize) {
    let state = ring.state();
    (state.tasks, state.queue.len())
}

/// All of these on one thread; each is polled whenever any is woken.
async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(move |context| {
        for (future, done) in futures.iter_mut().filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                *done = Some(value);
            }
        }
        match futures.iter().all(|(_, done)| done.is_some()) {
            true => Poll::Ready(futures.iter_mut().map(|(_, done)| done.take().unwrap()).collect()),
            false => Poll::Pending,
        }
    })
    .await
}

#[test]
fn threads_and_tasks_share_a_ring_and_each_gets_its_own_answers() {
    let (ring, server) = ends();
    let (serving, ends) = server.serve(3);
    thread::scope(|scope| {
        for number in 0..6u64 {
            let ring = &ring;
            scope.spawn(move || {
                for round in 0..500 {
                    let value = number << 32 | round;
                    assert_eq!(call(ring, nop(value), None).unwrap().value, value);
                }
            });
        }
        for number in 6..8u64 {
            let ring = &ring;
            scope.spawn(move || {
                for round in 0..50 {
                    let values = (0..10).map(|task| number << 32 | round << 8 | task);
                    let answers = block_on(all(values.clone().map(|value| task(ring, value))));
                    assert!(answers.into_iter().map(Result::unwrap).eq(values));
                }
            });
        }
    });
    assert_eq!(ring.state().lane.under_way(), 0);
    drop(ends);
    serving.join().unwrap();
    ring.end();
}

#[test]
fn tasks_of_one_thread_may_be_more_than_a_ring_has_slots() {
    let (ring, server) = ends();
    let (serving, ends) = server.serve(2);
    let answers = block_on(all((0..500).map(|value| task(&ring, value))));
    assert!(answers.into_iter().map(Result::unwrap).eq(0..500));
    assert_eq!(tasks_of(&ring), (0, 0));
    drop(ends);
    serving.join().unwrap();
    ring.end();
}

/// Polls once.
fn begin<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn room_that_a_dropped_task_was_told_of_goes_to_the_next() {
    let (ring, mut server) = ends();
    let mut under_way: Vec<_> = (0..u64::from(SLOTS)).map(|value| Box::pin(task(&ring, value))).collect();
    under_way.iter_mut().for_each(|task| assert!(begin(task.as_mut()).is_pending()));
    let mut told = Box::pin(task(&ring, 100));
    assert!(begin(told.as_mut()).is_pending());
    static WOKEN: AtomicUsize = AtomicUsize::new(0);
    struct Count;
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            WOKEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut next = Box::pin(task(&ring, 101));
    let counting = Waker::from(Arc::new(Count));
    assert!(next.as_mut().poll(&mut Context::from_waker(&counting)).is_pending());
    let command = server.wait_for();
    server.carry_out(&command);
    assert!(matches!(block_on(under_way.remove(0)), Ok(0)));
    assert_eq!(WOKEN.load(Ordering::Relaxed), 0);
    drop(told);
    assert_eq!(WOKEN.load(Ordering::Relaxed), 1);
    drop((under_way, next));
    ring.end();
}

#[test]
fn a_dropped_task_keeps_its_slot_until_the_server_has_answered() {
    let (ring, mut server) = ends();
    let mut dropped = Box::pin(task(&ring, 1));
    assert!(begin(dropped.as_mut()).is_pending());
    drop(dropped);
    assert_eq!(ring.state().lane.under_way(), 1);
    assert_eq!(tasks_of(&ring), (0, 0));
    let command = server.wait_for();
    server.carry_out(&command);
    ring.state().reap().unwrap();
    assert_eq!(ring.state().lane.under_way(), 0);
    ring.end();
}

#[test]
fn a_call_whose_time_is_over_ends_and_its_late_answer_harms_nobody() {
    let (ring, mut server) = ends();
    for _ in 0..2 * SLOTS {
        assert!(matches!(call(&ring, nop(1), soon()), Err(Error::TimedOut)));
        let command = server.wait_for();
        server.carry_out(&command);
    }
    let (serving, ends) = server.serve(0);
    assert_eq!(call(&ring, nop(2), None).unwrap().value, 2);
    drop(ends);
    serving.join().unwrap();
}

#[test]
fn calls_of_a_full_ring_end_when_their_time_is_over() {
    let (ring, _server) = ends();
    for _ in 0..SLOTS + 2 {
        assert!(matches!(call(&ring, nop(1), soon()), Err(Error::TimedOut)));
    }
    assert_eq!(ring.state().lane.room(), 0);
}

#[test]
fn a_lock_that_is_given_up_is_cancelled_and_counts_where_it_was_granted_first() {
    for granted in [false, true] {
        let (ring, mut server) = ends();
        let waiting = thread::spawn({
            let ring = Arc::clone(&ring);
            move || call(&ring, lock(), soon())
        });
        let (asked, cancel) = (server.wait_for(), server.wait_for());
        assert_eq!((cancel.opcode, cancel.operand), (Opcode::Cancel, asked.tag));
        let status = if granted { 0 } else { libc::ECANCELED as u32 };
        server.answer(&Completion { tag: asked.tag, status, ..Completion::default() });
        server.carry_out(&Command { value: 0, ..cancel });
        let outcome = waiting.join().unwrap();
        assert_eq!(outcome.is_ok(), granted, "{outcome:?}");
        assert!(granted || matches!(outcome, Err(Error::TimedOut)));
        ring.state().reap().unwrap();
        assert_eq!(ring.state().lane.under_way(), 0);
    }
}

#[test]
fn a_dropped_task_that_waits_for_a_lock_is_cancelled() {
    let (ring, mut server) = ends();
    let mut waiting = Box::pin(async { ring.start(lock(), &[], 0).await?.finish(|_, _, _| ()).await });
    assert!(begin(waiting.as_mut()).is_pending());
    drop(waiting);
    let (asked, cancel) = (server.wait_for(), server.wait_for());
    assert_eq!((cancel.opcode, cancel.operand), (Opcode::Cancel, asked.tag));
    ring.end();
}

#[test]
fn everybody_who_waits_hears_that_the_server_is_gone() {
    let (ring, mut server) = ends();
    let tasks = thread::spawn({
        let ring = Arc::clone(&ring);
        move || block_on(all((0..20).map(|value| task(&ring, value))))
    });
    let threads: Vec<_> = (0..3)
        .map(|value| {
            let ring = Arc::clone(&ring);
            thread::spawn(move || call(&ring, nop(value), None))
        })
        .collect();
    for _ in 0..SLOTS {
        server.wait_for();
    }
    server.gone.store(true, Ordering::Release);
    ring.end();
    let ended = |outcome: &Result<u64, Error>| matches!(outcome, Err(Error::Ended { .. }));
    assert!(tasks.join().unwrap().iter().all(ended));
    for thread in threads {
        assert!(ended(&thread.join().unwrap().map(|completion| completion.value)));
    }
}

#[test]
fn everybody_who_waits_hears_that_the_server_makes_no_sense() {
    let (ring, mut server) = ends();
    let tasks = thread::spawn({
        let ring = Arc::clone(&ring);
        move || block_on(all((0..20).map(|value| task(&ring, value))))
    });
    let caller = thread::spawn({
        let ring = Arc::clone(&ring);
        move || call(&ring, nop(7), None)
    });
    for _ in 0..SLOTS {
        server.wait_for();
    }
    server.answer(&Completion { tag: u64::MAX, ..Completion::default() });
    let broken = |outcome: &Result<u64, Error>| matches!(outcome, Err(Error::Protocol { .. }));
    assert!(tasks.join().unwrap().iter().all(broken));
    assert!(broken(&caller.join().unwrap().map(|completion| completion.value)));
    assert!(broken(&call(&ring, nop(8), None).map(|completion| completion.value)));
    ring.end();
}

#[test]
fn a_batch_is_submitted_whole_or_not_at_all() {
    let (ring, server) = ends();
    let (serving, ends) = server.serve(1);
    thread::scope(|scope| {
        for _ in 0..4 {
            let ring = &ring;
            scope.spawn(move || {
                for _ in 0..200 {
                    let loads: Vec<_> = (0..u64::from(SLOTS))
                        .map(|value| Load { command: nop(value), input: &[], output_bytes: 0 })
                        .collect();
                    let mut values = Vec::new();
                    ring.call_all(&loads, None, |index, completion, _, _| {
                        values.push((index as u64, completion.value));
                    })
                    .unwrap();
                    assert!(values.into_iter().eq((0..u64::from(SLOTS)).map(|value| (value, value))));
                }
            });
        }
    });
    let load = Load { command: nop(0), input: &[], output_bytes: 0 };
    let outcome = ring.call_all(&vec![load; SLOTS as usize + 1], None, |_, _, _, _| {});
    assert!(matches!(outcome, Err(Error::TogetherTooLong { found: 9, most: 8 })), "{outcome:?}");
    drop(ends);
    assert!(serving.join().unwrap().take().is_none());
}

#[test]
fn a_child_that_was_forked_is_refused_and_changes_nothing() {
    let (ring, mut server) = ends();
    let mut pending = Box::pin(task(&ring, 5));
    assert!(begin(pending.as_mut()).is_pending());
    let mut waits = Box::pin(task(&ring, 6));
    for value in 0..u64::from(SLOTS) - 1 {
        assert!(matches!(call(&ring, nop(value), Some(Instant::now())), Err(Error::TimedOut)));
    }
    assert!(begin(waits.as_mut()).is_pending());
    let mut tasks = Some((pending, waits));
    // As where another thread calls at the moment of the fork.
    let held = ring.raw_state();
    let refused = in_child(|| {
        let Some((mut pending, mut waits)) = tasks.take() else { return false };
        matches!(call(&ring, nop(9), None), Err(Error::Forked))
            && matches!(begin(pending.as_mut()), Poll::Ready(Err(Error::Forked)))
            && matches!(begin(waits.as_mut()), Poll::Ready(Err(Error::Forked)))
            && matches!(begin(pin!(task(&ring, 9))), Poll::Ready(Err(Error::Forked)))
    });
    assert!(refused);
    drop(held);
    for _ in 0..SLOTS {
        let command = server.wait_for();
        server.carry_out(&command);
    }
    assert!(server.take().is_none(), "a child submits nothing");
    let (serving, ends) = server.serve(0);
    assert_eq!(call(&ring, nop(10), None).unwrap().value, 10);
    drop(ends);
    serving.join().unwrap();
    ring.end();
}

#[test]
fn what_was_opened_for_nobody_is_closed() {
    for is_answered_first in [false, true] {
        let (ring, mut server) = ends();
        let open = Command::new(Opcode::Open, 0, 3);
        let mut opening = Box::pin(async { ring.start(open, &[], 0).await?.finish(|_, _, _| ()).await });
        assert!(begin(opening.as_mut()).is_pending());
        let asked = server.wait_for();
        let answer = Completion { tag: asked.tag, value: 77, ..Completion::default() };
        if is_answered_first {
            server.answer(&answer);
            drop(opening);
        } else {
            drop(opening);
            server.answer(&answer);
        }
        ring.state().reap().unwrap();
        let close = server.wait_for();
        assert_eq!((close.opcode, close.target, close.credential), (Opcode::Close, 77, 3));
        server.carry_out(&close);
        ring.state().reap().unwrap();
        assert_eq!(ring.state().lane.under_way(), 0);
        ring.end();
    }
}

#[test]
fn what_is_posted_waits_for_room_and_holds_up_nobody() {
    let (ring, mut server) = ends();
    for value in 0..20 {
        ring.post(nop(value));
    }
    let (serving, ends) = {
        for value in 0..20 {
            ring.state().reap().unwrap();
            let command = server.wait_for();
            assert_eq!(command.value, value);
            server.carry_out(&command);
        }
        server.serve(0)
    };
    assert_eq!(call(&ring, nop(20), None).unwrap().value, 20);
    assert!(ring.state().posted.is_empty());
    drop(ends);
    serving.join().unwrap();
}
