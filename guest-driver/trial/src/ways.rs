//! The same operations in the other ways that the library has: buffers in parts, batches, queues with buffers of their own or shared, futures.

use std::future::Future;
use std::io::{IoSlice, IoSliceMut};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::{self, Thread};

use anyhow::{Context, Result, ensure};
use ringfort_guest::{AsyncVolume, Error, Open, Queue, SharedBuffer};
use ringfort_protocol::command::Opcode;
use ringfort_reference::Answer;

use crate::contents::{allowed, bytes};
use crate::stage::Stage;

/// Bytes of a shared buffer.
const BUFFER_BYTES: u32 = 20_000;

pub fn step(stage: &mut Stage) -> Result<()> {
    let Some(file) = stage.pick(|opened| !opened.is_directory && !opened.appends) else { return Ok(()) };
    match stage.random.below(5) {
        0 => in_parts(stage, file),
        1 => in_a_batch(stage, file),
        2 => through_a_queue(stage, file),
        3 => between_shared_buffers(stage, file),
        _ => as_a_task(stage),
    }
}

/// Bytes, cut in two or three somewhere.
fn cut(stage: &mut Stage, bytes: &[u8]) -> Vec<Vec<u8>> {
    let (first, rest) = bytes.split_at(stage.random.below(bytes.len() as u64 + 1) as usize);
    let (second, third) = rest.split_at(stage.random.below(rest.len() as u64 + 1) as usize);
    [first, second, third].map(<[u8]>::to_vec).to_vec()
}

/// What the reference writes where the file may be written. The answer that is due.
fn write(stage: &mut Stage, file: usize, offset: u64, bytes: &[u8]) -> Answer<u64> {
    let opened = &stage.opened[file];
    allowed(opened.writes)?;
    let (who, node) = (stage.who(), opened.node);
    Ok(stage.reference.write_by(&who, node, Some(offset as usize), bytes) as u64)
}

fn read(stage: &Stage, file: usize, offset: u64, len: usize) -> Answer<Vec<u8>> {
    let opened = &stage.opened[file];
    allowed(opened.reads)?;
    stage.reference.read_at(opened.node, offset as usize, len).map(<[u8]>::to_vec)
}

fn in_parts(stage: &mut Stage, file: usize) -> Result<()> {
    let mut bytes = bytes(stage);
    bytes.push(1);
    let offset = stage.random.length();
    let parts = cut(stage, &bytes);
    let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let found = stage.opened[file].file.write_vectored_at(&slices, offset);
    let expected = write(stage, file, offset, &bytes);
    stage.same(Opcode::Write, "in parts", found, expected.map(drop))?;
    let mut parts = cut(stage, &bytes);
    let mut slices: Vec<_> = parts.iter_mut().map(|part| IoSliceMut::new(part)).collect();
    let found = stage.opened[file].file.read_vectored_at(&mut slices, offset);
    let expected = read(stage, file, offset, bytes.len());
    let found = found.map(|read| parts.concat()[..read].to_vec());
    stage.same_bytes(Opcode::Read, "in parts", found, expected)
}

/// Writes that do not touch, then reads: the commands of a batch have no order.
fn in_a_batch(stage: &mut Stage, file: usize) -> Result<()> {
    let parts: Vec<_> =
        (0..4).map(|_| bytes(stage)).map(|bytes| bytes[..bytes.len().min(8192)].to_vec()).collect();
    let volume = stage.volume();
    let mut batch = volume.batch();
    for (index, part) in parts.iter().enumerate() {
        batch.write_at(&stage.opened[file].file, part, index as u64 * 8192);
    }
    let outcomes = batch.run()?;
    ensure!(outcomes.len() == parts.len(), "{} outcomes of {}", outcomes.len(), parts.len());
    for (index, (part, outcome)) in parts.iter().zip(outcomes).enumerate() {
        let expected = write(stage, file, index as u64 * 8192, part);
        stage.same(Opcode::Write, "in a batch", outcome.map(|outcome| outcome.value), expected)?;
    }
    let volume = stage.volume();
    let mut batch = volume.batch();
    for (index, part) in parts.iter().enumerate() {
        batch.read_at(&stage.opened[file].file, part.len(), index as u64 * 8192);
    }
    for (index, (part, outcome)) in parts.iter().zip(batch.run()?).enumerate() {
        let expected = read(stage, file, index as u64 * 8192, part.len());
        stage.same_bytes(Opcode::Read, "in a batch", outcome.map(|outcome| outcome.bytes), expected)?;
    }
    Ok(())
}

/// Submits, and waits for its completion.
fn complete(
    queue: &mut Queue,
    into: &mut [u8],
    submit: impl FnOnce(&mut Queue) -> Result<bool, Error>,
) -> Result<Result<u64, Error>> {
    ensure!(submit(queue)?, "no room in a queue with nothing under way");
    Ok(queue.next(into)?.result)
}

fn through_a_queue(stage: &mut Stage, file: usize) -> Result<()> {
    let (bytes, offset) = (bytes(stage), stage.random.length());
    let mut queue = stage.volume().queue()?;
    let mut buffer = vec![0; bytes.len()];
    let opened = &stage.opened[file].file;
    let written = complete(&mut queue, &mut [], |queue| queue.write(opened, &bytes, offset, 1))?;
    let read_back = complete(&mut queue, &mut buffer, |queue| queue.read(opened, bytes.len(), offset, 2))?;
    let synced = complete(&mut queue, &mut [], |queue| queue.sync(opened, 3))?;
    let expected = write(stage, file, offset, &bytes);
    stage.same(Opcode::Write, "through a queue", written, expected)?;
    let expected = read(stage, file, offset, bytes.len());
    let found = read_back.map(|read| buffer[..read as usize].to_vec());
    stage.same_bytes(Opcode::Read, "through a queue", found, expected)?;
    stage.same(Opcode::Sync, "through a queue", synced.map(drop), Ok(())).map(drop)
}

/// Writes from several buffers that lie in shared memory, and reads back into others.
fn between_shared_buffers(stage: &mut Stage, file: usize) -> Result<()> {
    let mut queue = stage.volume().queue()?;
    let buffers: Vec<SharedBuffer> =
        (0..4).map(|_| queue.buffer(BUFFER_BYTES).context("no room for a buffer")).collect::<Result<_>>()?;
    let offset = stage.random.length();
    let mut all = Vec::new();
    let mut parts = Vec::new();
    for buffer in &buffers[..2] {
        let mut part = bytes(stage);
        part.truncate(BUFFER_BYTES as usize);
        queue.fill(buffer, &part)?;
        parts.push((buffer, part.len() as u32));
        all.extend(part);
    }
    // One of them once more.
    let again = stage.random.below(u64::from(parts[0].1) + 1) as usize;
    parts.push((&buffers[0], again as u32));
    all.extend_from_within(..again);
    let opened = &stage.opened[file].file;
    let written = complete(&mut queue, &mut [], |queue| queue.write_gathered(opened, &parts, offset, 1))?;
    let places = [&buffers[3], &buffers[2]];
    let read_back = complete(&mut queue, &mut [], |queue| queue.read_scattered(opened, &places, offset, 2))?;
    let alone = complete(&mut queue, &mut [], |queue| queue.read_shared(opened, &buffers[1], offset, 3))?;
    let mut found = vec![0; 2 * BUFFER_BYTES as usize];
    let (first, second) = found.split_at_mut(BUFFER_BYTES as usize);
    queue.copy_out(places[0], first)?;
    queue.copy_out(places[1], second)?;
    let mut found_alone = vec![0; BUFFER_BYTES as usize];
    queue.copy_out(&buffers[1], &mut found_alone)?;
    buffers.into_iter().for_each(|buffer| queue.release(buffer));
    drop(queue);

    let expected = write(stage, file, offset, &all);
    stage.same(Opcode::WriteGather, "of shared buffers", written, expected)?;
    for (opcode, result, found) in
        [(Opcode::ReadScatter, read_back, found), (Opcode::Read, alone, found_alone)]
    {
        let expected = read(stage, file, offset, found.len());
        let found = result.map(|read| found[..(read as usize).min(found.len())].to_vec());
        stage.same_bytes(opcode, "into shared buffers", found, expected)?;
    }
    Ok(())
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// Writes a file that is made where it is not there, and reads it back.
async fn write_and_read(
    volume: &AsyncVolume,
    place: ringfort_guest::Place<'_>,
    bytes: &[u8],
) -> Result<Vec<u8>, Error> {
    let file = volume.open(place, Open::to_write().create(0o666).truncate()).await?;
    file.write_at(bytes, 0).await?;
    file.sync().await?;
    let found = file.read_at(bytes.len() + 1, 0).await?;
    file.close().await?;
    Ok(found)
}

fn as_a_task(stage: &mut Stage) -> Result<()> {
    let (spot, bytes) = (stage.spot(), bytes(stage));
    let volume = stage.volume().asynchronous();
    let found = block_on(write_and_read(&volume, spot.real(stage), &bytes));
    let who = stage.who();
    let place = spot.model_of(stage);
    let expected = stage.reference.open_or_make_by(&who, place, 6, (0o666, false, true));
    if let Ok(node) = expected {
        stage.reference.write_by(&who, node, Some(0), &bytes);
    }
    stage.same_bytes(Opcode::Open, &format!("{} as a task", spot.shown()), found, expected.map(|_| bytes))?;
    let spot = stage.spot();
    let found = block_on(volume.list(spot.real(stage), false)).map(|entries| {
        let mut names: Vec<_> =
            entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect();
        names.sort();
        names
    });
    let expected = stage.reference.open_directory_by(&who, spot.model_of(stage));
    let expected = expected.and_then(|directory| stage.reference.names(directory));
    stage.same(Opcode::ReadDirectory, &format!("{} as a task", spot.shown()), found, expected).map(drop)
}
