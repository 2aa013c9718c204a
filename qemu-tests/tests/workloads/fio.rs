//! fio, which writes a checksum into every block and reads them back.

use anyhow::Result;
use ringfort_qemu_tests::machine::Guest;
use ringfort_qemu_tests::scene::MOUNTED;

use crate::must;

/// A job with a file of its own.
pub struct Job {
    pub name: &'static str,
    pub options: &'static str,
}

impl Job {
    /// Writes the file.
    pub fn write(&self, guest: &Guest) -> Result<()> {
        self.run(guest, "--do_verify=0 --end_fsync=1")
    }

    /// Reads every block that [`Job::write`] wrote, with nothing cached in the guest.
    pub fn verify(&self, guest: &Guest) -> Result<()> {
        must(guest, "echo 3 > /proc/sys/vm/drop_caches")?;
        self.run(guest, "--verify_only=1 --verify_fatal=1")
    }

    fn run(&self, guest: &Guest, phase: &str) -> Result<()> {
        let Job { name, options } = self;
        must(
            guest,
            &format!(
                "cd {MOUNTED} && fio --name={name} --filename=fio-{name} --ioengine=psync --verify=crc32c \
                 --verify_state_save=0 --randseed=42 --thread --minimal {options} {phase}"
            ),
        )
        .map(drop)
    }
}
