//! A child that is forked shares memory with its parent, and must leave the parent's rings alone: all that it calls fails, and the parent's calls go on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use ringfort_guest::{AsyncFile, Error, File, Lock, Open, Queue, SharedBuffer, Volume};

use crate::stage::Stage;
use crate::ways::block_on;

const PATH: &str = "/forked";

/// What a connection has given.
struct Held {
    volume: Volume,
    file: File,
    task: AsyncFile,
    queue: Queue,
    buffer: SharedBuffer,
}

/// Whether `act` says so in a child, of which nothing else is left.
fn in_child(act: impl FnOnce() -> bool) -> Result<bool> {
    // SAFETY: memory can be allocated in a child of a process with threads, and locks of the library are what this is about; the child runs nothing but `act`, which
    // neither prints nor lets a panic through, and then ends.
    match unsafe { fork() }.context("forking")? {
        ForkResult::Child => {
            let said = catch_unwind(AssertUnwindSafe(act)).unwrap_or(false);
            // SAFETY: it ends the process, and runs nothing else.
            unsafe { libc::_exit(i32::from(!said)) }
        }
        ForkResult::Parent { child } => {
            Ok(matches!(waitpid(child, None).context("waiting for a child")?, WaitStatus::Exited(_, 0)))
        }
    }
}

fn is_refused<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Forked))
}

impl Held {
    /// Every way to the server. What was opened is let go of at the end, as a child that ends does.
    fn all_refused(self) -> bool {
        let Held { volume, file, task, mut queue, buffer } = self;
        let mut bytes = [0; 4];
        let mut batch = volume.batch();
        let calls = is_refused(volume.stat(PATH))
            && is_refused(volume.open(PATH, Open::to_read()))
            && is_refused(volume.queue())
            && is_refused(volume.nop(1))
            && is_refused(batch.read_at(&file, 4, 0).run());
        let files = is_refused(file.read_at(&mut bytes, 0))
            && is_refused(file.write_at(b"lost", 0))
            && is_refused(file.append(b"lost"))
            && is_refused(file.sync())
            && is_refused(file.set_size(0))
            && is_refused(file.try_lock(&Lock::exclusive()));
        let tasks = is_refused(block_on(task.read_at(4, 0))) && is_refused(block_on(task.sync()));
        let queued = is_refused(queue.nop(1, 1))
            && is_refused(queue.write(&file, b"lost", 0, 2))
            && is_refused(queue.fill(&buffer, b"lost"))
            && is_refused(queue.write_shared(&file, &buffer, 4, 0, 3))
            && is_refused(queue.read_scattered(&file, &[&buffer], 0, 4))
            && is_refused(queue.next(&mut bytes))
            && is_refused(queue.try_next(&mut bytes));
        let closed = is_refused(file.close()) && is_refused(block_on(task.close()));
        drop((queue, volume));
        calls && files && tasks && queued && closed
    }
}

pub fn children_leave_their_parents_rings_alone(stage: &mut Stage) -> Result<()> {
    stage.choose_first();
    let volume = stage.volume();
    let file = volume.create(PATH, 0o666)?;
    file.write_at(b"kept", 0)?;
    file.lock(&Lock::exclusive())?;
    let task = block_on(volume.asynchronous().open(PATH, Open::to_read()))?;
    let mut queue = volume.queue()?;
    let buffer = queue.buffer(4096).context("no room for a buffer")?;
    // While a command is under way, too.
    ensure!(queue.nop(7, 7)?, "no room in a queue with nothing under way");
    let mut held = Some(Held { volume: volume.clone(), file, task, queue, buffer });
    ensure!(in_child(|| held.take().is_some_and(Held::all_refused))?, "a child came by what is its parent's");

    let Held { file, task, mut queue, buffer, .. } = held.context("the parent keeps what it holds")?;
    let mut bytes = [0; 8];
    let done = queue.next(&mut bytes)?;
    ensure!((done.tag, done.result?) == (7, 7), "a command that was under way was lost");
    ensure!(queue.read_shared(&file, &buffer, 0, 8)?, "no room in a queue with nothing under way");
    ensure!(queue.next(&mut [])?.result? == 4, "the parent's queue does not go on");
    queue.copy_out(&buffer, &mut bytes[..4])?;
    ensure!(&bytes[..4] == b"kept" && block_on(task.read_at(8, 0))? == b"kept", "{bytes:?}");
    // The child's end gave nothing up.
    let other = stage.actors[1].volume.open(PATH, Open::to_read());
    if let Ok(other) = other {
        ensure!(!other.try_lock(&Lock::exclusive())?, "a child's end gave up its parent's lock");
    }
    block_on(task.close())?;
    file.close()?;
    Ok(volume.remove_file(PATH)?)
}
