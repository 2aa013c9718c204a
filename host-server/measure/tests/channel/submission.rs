//! The ways to carry out operations: queues, batches and chains, tasks, calls with several buffers; and what ends them early.

use std::future::Future;
use std::io::{IoSlice, IoSliceMut};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use ringfort_guest::{
    Error, Lock, Open, Options, Queue, RenameMode, SetXattrMode, Volume, connect, connect_with,
};

use super::with_server;

const BLOCK_BYTES: u32 = 4096;

fn with_queues(path: &std::path::Path, queues: u32) -> Volume {
    connect_with(path, &Options { queues, ..Options::default() }).unwrap()
}

fn drain(queue: &mut Queue) -> Vec<u64> {
    let mut tags = Vec::new();
    while queue.under_way() > 0 {
        let done = queue.next(&mut []).unwrap();
        done.result.unwrap();
        tags.push(done.tag);
    }
    tags
}

#[test]
fn a_queue_keeps_many_commands_under_way() {
    with_server(|path| {
        let volume = with_queues(path, 1);
        let file = volume.create("/file", 0o644).unwrap();
        let mut queue = volume.queue().unwrap();
        let mut written = Vec::new();
        for block in 0..500u64 {
            let bytes = [block as u8; BLOCK_BYTES as usize];
            while !queue.write(&file, &bytes, block * u64::from(BLOCK_BYTES), block).unwrap() {
                written.push(queue.next(&mut []).unwrap().tag);
            }
        }
        written.extend(drain(&mut queue));
        written.sort_unstable();
        assert!(written.into_iter().eq(0..500));
        assert!(queue.sync(&file, 0).unwrap() && queue.nop(77, 1).unwrap());
        let mut results: Vec<_> = (0..2).map(|_| queue.next(&mut []).unwrap()).collect();
        results.sort_by_key(|done| done.tag);
        assert!(matches!(results[1].result, Ok(77)));
        assert!(queue.try_next(&mut []).unwrap().is_none());
        for block in [7u64, 499, 500] {
            assert!(queue.read(&file, 4096, block * u64::from(BLOCK_BYTES), block).unwrap());
            let mut back = [0; BLOCK_BYTES as usize];
            let done = queue.next(&mut back).unwrap();
            assert_eq!(done.result.unwrap(), if block < 500 { 4096 } else { 0 });
            assert!(block == 500 || back == [block as u8; BLOCK_BYTES as usize]);
        }
        drop(volume.open("/file", Open::to_read()).unwrap());
        assert!(matches!(volume.queue(), Err(Error::NoQueueLeft)));
    });
}

#[test]
fn shared_buffers_are_used_by_one_at_a_time() {
    with_server(|path| {
        let volume = with_queues(path, 2);
        let file = volume.create("/file", 0o644).unwrap();
        let (mut queue, mut other) = (volume.queue().unwrap(), volume.queue().unwrap());
        let (from, into) = (queue.buffer(BLOCK_BYTES).unwrap(), queue.buffer(BLOCK_BYTES).unwrap());
        queue.fill(&from, &[5; BLOCK_BYTES as usize]).unwrap();
        assert!(queue.write_shared(&file, &from, BLOCK_BYTES, 0, 1).unwrap());
        assert!(queue.write_shared(&file, &from, 100, u64::from(BLOCK_BYTES), 2).unwrap());
        assert!(matches!(queue.fill(&from, b"no"), Err(Error::Buffer { .. })));
        drain(&mut queue);
        assert!(queue.read_shared(&file, &into, 0, 3).unwrap());
        let mut back = [0; BLOCK_BYTES as usize];
        assert!(matches!(queue.copy_out(&into, &mut back), Err(Error::Buffer { .. })));
        assert!(matches!(queue.read_shared(&file, &into, 0, 4), Err(Error::Buffer { .. })));
        drain(&mut queue);
        queue.copy_out(&into, &mut back).unwrap();
        assert_eq!(back, [5; BLOCK_BYTES as usize]);
        assert_eq!(file.stat().unwrap().size_bytes, 4196);
        assert!(queue.write_shared(&file, &into, BLOCK_BYTES + 1, 0, 5).is_err());
        for refused in [
            other.fill(&into, b"no"),
            other.copy_out(&into, &mut back),
            other.read_shared(&file, &into, 0, 6).map(drop),
        ] {
            assert!(matches!(refused, Err(Error::Buffer { .. })));
        }
    });
}

#[test]
fn a_buffer_that_is_released_in_use_is_free_when_it_is_not() {
    with_server(|path| {
        let volume = with_queues(path, 1);
        let file = volume.create("/file", 0o644).unwrap();
        let mut queue = volume.queue().unwrap();
        let all = |queue: &mut Queue| {
            let mut buffers = Vec::new();
            while let Some(buffer) = queue.buffer(64 << 10) {
                buffers.push(buffer);
            }
            buffers
        };
        let mut buffers = all(&mut queue);
        let count = buffers.len();
        assert!(count >= 16, "{count} buffers");
        let used = buffers.pop().unwrap();
        assert!(queue.write_shared(&file, &used, 100, 0, 1).unwrap());
        queue.release(used);
        assert!(queue.buffer(64 << 10).is_none());
        drain(&mut queue);
        assert!(queue.buffer(64 << 10).is_some());
        // All that it had, and all that it had under way, is its successor's.
        assert!(queue.read_shared(&file, &buffers[0], 0, 2).unwrap());
        drop(queue);
        let mut queue = volume.queue().unwrap();
        assert_eq!(queue.under_way(), 0);
        assert_eq!(all(&mut queue).len(), count);
        assert!(matches!(queue.fill(&buffers[0], b"no"), Err(Error::Buffer { .. })));
    });
}

#[test]
fn a_chain_goes_on_while_it_succeeds() {
    with_server(|path| {
        let volume = connect(path).unwrap();
        let mut chain = volume.batch();
        chain.open("/new", Open::to_write().create(0o640)).then().write_opened(b"hello", 0).then();
        let written = chain.sync_opened().then_always().close_opened().run().unwrap();
        assert!(written.iter().all(Result::is_ok), "{written:?}");
        assert_eq!(volume.read_file("/new").unwrap(), b"hello");
        let mut chain = volume.batch();
        let outcomes = chain
            .open("/none", Open::to_read())
            .then()
            .read_opened(100, 0)
            .then_always()
            .close_opened()
            .run()
            .unwrap();
        let errors: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap_err().errno()).collect();
        assert_eq!(errors, [libc::ENOENT, libc::ECANCELED, libc::ECANCELED]);
        assert_eq!(volume.read_file("/none").unwrap_err().errno(), libc::ENOENT);
        // Longer than a call.
        let long: Vec<u8> = (0..2_500_000u32).map(|index| (index % 253) as u8).collect();
        volume.create("/long", 0o600).unwrap().write_at(&long, 0).unwrap();
        assert!(volume.read_file("/long").unwrap() == long);
        volume.create("/empty", 0o600).unwrap();
        assert!(volume.read_file("/empty").unwrap().is_empty());
    });
}

#[test]
fn a_batch_is_more_calls_at_once() {
    with_server(|path| {
        let volume = connect(path).unwrap();
        let file = volume.create("/file", 0o644).unwrap();
        let blocks: Vec<[u8; 100]> = (0..40).map(|block| [block; 100]).collect();
        let mut batch = volume.batch();
        for (number, block) in (0..).zip(&blocks) {
            batch.write_at(&file, block, number * 100);
        }
        assert!(batch.run().unwrap().into_iter().all(|written| written.unwrap().value == 100));
        let mut batch = volume.batch();
        (0..40).for_each(|number| {
            batch.read_at(&file, 100, number * 100);
        });
        let read = batch.run().unwrap();
        assert!(
            read.into_iter().map(|read| read.unwrap().bytes).eq(blocks.iter().map(|block| block.to_vec()))
        );
        let mut batch = volume.batch();
        (0..10_000).for_each(|_| {
            batch.sync(&file);
        });
        assert!(matches!(batch.run(), Err(Error::TogetherTooLong { found: 10_000, .. })));
        assert!(volume.batch().run().unwrap().is_empty());
        // A link to nothing holds up nobody.
        assert!(volume.batch().sync(&file).then().run().unwrap()[0].is_ok());
        volume.nop(1).unwrap();
    });
}

#[test]
fn several_buffers_are_read_and_written_in_one_call() {
    with_server(|path| {
        let volume = connect(path).unwrap();
        let file = volume.create("/file", 0o644).unwrap();
        for long in [10, 700_000] {
            let (first, second) = (vec![1; long], vec![2; 2 * long]);
            file.write_vectored_at(&[IoSlice::new(&first), IoSlice::new(&[]), IoSlice::new(&second)], 3)
                .unwrap();
            assert_eq!(file.stat().unwrap().size_bytes, 3 + 3 * long as u64);
            let (mut one, mut two, mut three) = (vec![0; 2 * long], vec![0; long / 2], vec![9; long]);
            let mut buffers = [&mut one, &mut two, &mut three].map(|buffer| IoSliceMut::new(buffer));
            assert_eq!(file.read_vectored_at(&mut buffers, 3).unwrap(), 3 * long);
            assert!(one[..long] == first && one[long..] == second[..long]);
            assert!(two == second[..long / 2]);
            assert!(
                three[..long / 2] == second[..long / 2] && three[long / 2..].iter().all(|byte| *byte == 9)
            );
            assert_eq!(file.read_vectored_at(&mut [], 0).unwrap(), 0);
        }
        file.write_vectored_at(&[], 1 << 40).unwrap();
        assert_eq!(file.stat().unwrap().size_bytes, 3 + 3 * 700_000);
    });
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Carries out a future on this thread, with nothing but the standard library.
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

fn is_send<T: Send>(future: T) -> T {
    future
}

#[test]
fn tasks_do_what_threads_do() {
    with_server(|path| {
        let volume = connect(path).unwrap().asynchronous();
        block_on(is_send(async {
            volume.create_directory("/d", 0o755).await.unwrap();
            let file = volume.create("/d/file", 0o644).await.unwrap();
            let data: Vec<u8> = (0..2_200_000u32).map(|index| (index % 251) as u8).collect();
            file.write_at(&data, 7).await.unwrap();
            file.sync().await.unwrap();
            file.sync_data().await.unwrap();
            assert!(file.read_at(3_000_000, 7).await.unwrap() == data);
            assert_eq!(file.stat().await.unwrap().size_bytes, 2_200_007);
            volume.set_xattr("/d/file", "user.a", b"b", SetXattrMode::Create).await.unwrap();
            assert_eq!(volume.xattr("/d/file", "user.a").await.unwrap(), b"b");
            assert_eq!(volume.list_xattrs("/d/file").await.unwrap(), [b"user.a"]);
            volume.remove_xattr("/d/file", "user.a").await.unwrap();
            volume.symlink("file", "/d/link").await.unwrap();
            assert_eq!(volume.read_link("/d/link").await.unwrap(), b"file");
            volume.link("/d/file", "/d/second").await.unwrap();
            volume.rename("/d/second", "/d/third", RenameMode::NoReplace).await.unwrap();
            let mut names: Vec<_> =
                volume.list("/d", true).await.unwrap().into_iter().map(|entry| entry.name).collect();
            names.sort();
            assert_eq!(names, [&b"file"[..], b"link", b"third"]);
            for name in ["/d/file", "/d/link", "/d/third"] {
                volume.remove_file(name).await.unwrap();
            }
            volume.remove_directory("/d").await.unwrap();
            assert_eq!(volume.stat("/d").await.unwrap_err().errno(), libc::ENOENT);
            assert!(volume.statistics().await.is_ok());
            file.close().await.unwrap();
        }));
    });
}

#[test]
fn a_thousand_tasks_open_write_and_drop_files_on_one_thread() {
    with_server(|path| {
        let volume = connect(path).unwrap().asynchronous();
        let work = |number: u64| {
            let volume = volume.clone();
            async move {
                let file = volume.create(&format!("/{number}"), 0o600).await?;
                file.write_at(&number.to_le_bytes(), number).await?;
                file.read_at(8, number).await
            }
        };
        let read = block_on(all((0..1000).map(work)));
        assert!(
            read.into_iter().map(Result::unwrap).eq((0..1000u64).map(|number| number.to_le_bytes().to_vec()))
        );
        // The server's account of what is open is looked at when it ends; nothing is left over while it goes on, either.
        let removed = block_on(all((0..1000).map(|number| {
            let volume = volume.clone();
            async move { volume.remove_file(&format!("/{number}")).await }
        })));
        assert!(removed.into_iter().all(|removed| removed.is_ok()));
    });
}

#[test]
fn who_gives_up_waiting_for_a_lock_does_not_hold_it_later() {
    with_server(|path| {
        let holder = connect(path).unwrap();
        // Far longer than what nobody holds up takes on a busy machine.
        let timeout = Some(Duration::from_secs(2));
        let hasty = connect_with(path, &Options { timeout, ..Options::default() }).unwrap();
        let held = holder.create("/lock", 0o666).unwrap();
        held.lock(&Lock::exclusive()).unwrap();

        let wanted = hasty.open("/lock", Open::to_write()).unwrap();
        assert!(matches!(wanted.lock(&Lock::exclusive()), Err(Error::TimedOut)));
        let tasks = hasty.asynchronous();
        let file = block_on(tasks.open("/lock", Open::to_write())).unwrap();
        let mut waiting = Box::pin(file.lock(Lock::exclusive()));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(waiting);
        // Answered after the cancellation, on whichever ring: whoever waits no more is out of the way.
        for _ in 0..4 {
            hasty.nop(0).unwrap();
        }
        held.unlock().unwrap();
        let other = holder.open("/lock", Open::to_write()).unwrap();
        let mut tries = 0;
        while !other.try_lock(&Lock::exclusive()).unwrap() {
            tries += 1;
            assert!(tries < 1000, "a lock that nobody waits for is free");
            thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn queues_and_tasks_hear_that_the_server_is_gone() {
    let mut kept = None;
    with_server(|path| {
        let volume = with_queues(path, 1);
        let file = volume.create("/file", 0o644).unwrap();
        kept = Some((volume.queue().unwrap(), volume, file));
    });
    let (mut queue, volume, file) = kept.unwrap();
    assert!(queue.nop(1, 1).unwrap());
    assert!(matches!(queue.next(&mut []), Err(Error::Ended { .. })));
    assert!(matches!(block_on(volume.asynchronous().stat("/")), Err(Error::Ended { .. })));
    assert!(matches!(volume.batch().sync(&file).run(), Err(Error::Ended { .. })));
}
