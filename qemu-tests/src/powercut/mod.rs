//! Power cuts on real component files. A process that is killed loses nothing that it has written, so killing the server cannot
//! show a flush that is missing. Here each component file is exported over FUSE by a `qemu-storage-daemon`, which writes
//! every write and flush to a log; afterwards the states that a cut of the power might have left are made from the logs,
//! and `ringfort` opens them.
//!
//! Modules, lowest first:
//! * [`write_log`]: the log of one component, in the format of the kernel's dm-log-writes
//! * [`recorder`]: component files exported with a log under each, and moments that are the same in all logs
//! * [`medium`]: what the medium of one component holds after a cut
//! * [`witness`]: writers in a guest, what they were promised, and whether a volume keeps it
//! * [`trial`]: a recording of the writers, states made from it, and the verdict on each

pub mod medium;
pub mod recorder;
pub mod trial;
pub mod witness;
pub mod write_log;
