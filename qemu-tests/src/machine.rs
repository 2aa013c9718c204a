//! QEMU's command line, and a guest's life from boot to power-off.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::agent::{Agent, Outcome, Task};
use crate::console::Console;
use crate::monitor::Monitor;
use crate::place::RunFolder;
use crate::programs::{self, Program};
use crate::provision::{self, Kernel};
use crate::vsock::VsockDevice;
use crate::{image, tsc};

/// Under software emulation, with the host's cores taken by others, a boot of two seconds has been seen to take forty.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// For commands with nothing heavy to do.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// An ext4 file system looks for its checksums by name, where no dependency tells.
const EXT4_MODULES: [&str; 2] = ["crc32c_generic", "ext4"];
const VSOCK_MODULES: [&str; 1] = ["vmw_vsock_virtio_transport"];

/// The machine type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Board {
    /// QEMU's `microvm`: virtio over MMIO, the quickest to boot.
    MicroVm,
    /// A PC with PCI Express.
    Q35,
}

/// How guest instructions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// Software emulation.
    Tcg,
}

impl Accelerator {
    /// KVM where the processor offers it and the node opens, else emulation; `RINGFORT_ACCEL=kvm|tcg` decides instead.
    /// The node alone proves nothing: in a virtual machine without nesting it may open and guests still hang.
    pub fn choose() -> Result<Accelerator> {
        match std::env::var("RINGFORT_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Accelerator::Kvm),
            Ok("tcg") => return Ok(Accelerator::Tcg),
            Ok(other) => bail!("RINGFORT_ACCEL is {other:?}; say kvm or tcg"),
            Err(_) => {}
        }
        let processors = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let offered = processors.split_whitespace().any(|flag| flag == "svm" || flag == "vmx");
        let opens = File::options().read(true).write(true).open("/dev/kvm").is_ok();
        Ok(if offered && opens { Accelerator::Kvm } else { Accelerator::Tcg })
    }

    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "TCG (software emulation)",
        }
    }
}

/// A virtio-fs device.
#[derive(Clone, Debug)]
struct Share {
    tag: String,
    socket: PathBuf,
}

/// A machine to be booted.
#[derive(Clone, Debug)]
pub struct Machine {
    board: Board,
    kernel: Kernel,
    memory_mib: u32,
    processors: u32,
    request_queues: u32,
    restarts: bool,
    slots: u32,
    shares: Vec<Share>,
    vsock: Option<PathBuf>,
    ext4_disk_mib: u64,
    programs: Vec<Program>,
}

impl Machine {
    /// A machine with the release's kernel, one processor, 512 MiB, and devices of one request queue.
    pub fn new(board: Board) -> Machine {
        Machine {
            board,
            kernel: Kernel::Release,
            memory_mib: 512,
            processors: 1,
            request_queues: 1,
            restarts: false,
            slots: 0,
            shares: Vec::new(),
            vsock: None,
            ext4_disk_mib: 0,
            programs: Vec::new(),
        }
    }

    /// Sets the machine type.
    pub fn board(mut self, board: Board) -> Machine {
        self.board = board;
        self
    }

    /// Sets the kernel.
    pub fn kernel(mut self, kernel: Kernel) -> Machine {
        self.kernel = kernel;
        self
    }

    /// Sets the number of processors. Guests use as many request queues of a device as they have processors, at most.
    pub fn processors(mut self, processors: u32) -> Machine {
        self.processors = processors;
        self
    }

    /// Sets how many request queues each virtio-fs device offers.
    pub fn request_queues(mut self, request_queues: u32) -> Machine {
        self.request_queues = request_queues;
        self
    }

    /// Lets the guest restart itself with QEMU staying, see [`Guest::restart`]; otherwise a restart ends QEMU.
    pub fn restarts(mut self) -> Machine {
        self.restarts = true;
        self
    }

    /// Sets how many slots are left free for [`Guest::plug`]. A PC has them, a microvm has none.
    pub fn free_slots(mut self, slots: u32) -> Machine {
        self.slots = slots;
        self
    }

    /// Sets the memory.
    pub fn memory_mib(mut self, memory_mib: u32) -> Machine {
        self.memory_mib = memory_mib;
        self
    }

    /// Adds a virtio-fs device with `tag`, served at `socket`.
    pub fn share(mut self, tag: &str, socket: &Path) -> Machine {
        self.shares.push(Share { tag: tag.to_owned(), socket: socket.to_owned() });
        self
    }

    /// Adds a vsock device. A guest that connects to `PORT` of the host reaches whoever listens at `path` with `_PORT` behind it.
    pub fn vsock(mut self, path: &Path) -> Machine {
        self.vsock = Some(path.to_owned());
        self
    }

    /// Adds an empty disk, `/dev/vda` in the guest, and what it takes to have an ext4 file system on it.
    pub fn ext4_disk_mib(mut self, size_mib: u64) -> Machine {
        self.ext4_disk_mib = size_mib;
        self.programs(&[Program::Mke2fs])
    }

    /// Packs `programs` into the image.
    pub fn programs(mut self, programs: &[Program]) -> Machine {
        self.programs.extend_from_slice(programs);
        self
    }

    /// Boots, and returns when the guest's agent listens. `name` is the run folder's.
    pub fn boot(&self, name: &str) -> Result<Guest> {
        let parts = provision::parts()?;
        let kernel = provision::kernel(self.kernel)?;
        let programs = programs::prepare(&self.programs)?;
        let folder = RunFolder::new(name)?;
        let initramfs = folder.path().join("initramfs");
        image::write(&initramfs, parts, &kernel, &self.modules(), &programs)?;
        let vsock_socket = folder.socket("vsock-device");
        let vsock = self
            .vsock
            .as_deref()
            .map(|path| VsockDevice::start(&vsock_socket, path, &folder.path().join("vsock.log")));
        let vsock = vsock.transpose()?;
        let accelerator = Accelerator::choose()?;
        let nonce = nonce()?;
        let agent_socket = folder.socket("agent");
        let monitor_socket = folder.socket("monitor");
        let errors = folder.path().join("qemu.log");

        let mut command = parts.qemu.command();
        command
            // Devices stop in the reverse of this order, and start in it: what the virtio-fs device tells the guest of when it stops
            // and starts is then carried.
            .args(self.vsock_arguments(&vsock_socket))
            .args(self.arguments(accelerator))
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", &kernel_arguments(accelerator, &nonce)])
            .args([
                "-chardev",
                &format!("socket,id=agent,path={},server=on,wait=off", agent_socket.display()),
            ])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", monitor_socket.display())])
            .args(self.disk_arguments(folder.path())?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).with_context(|| format!("creating {}", errors.display()))?);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let output = child.stdout.take().context("QEMU has no standard output")?;
        let console = Console::follow(output);
        let agent = Agent::connect(&agent_socket, &nonce, console.clone());
        let ready = agent.and_then(|agent| agent.wait_ready(0, BOOT_TIMEOUT).map(|()| agent));
        match ready {
            Ok(agent) => {
                let booted_in = started.elapsed();
                let restarts = self.restarts;
                Ok(Guest {
                    child,
                    agent,
                    agent_socket,
                    monitor_socket,
                    console,
                    nonce,
                    restarts,
                    folder,
                    _vsock: vsock,
                    booted_in,
                    accelerator,
                })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = fs::read_to_string(&errors).unwrap_or_default();
                Err(error.context(format!("booting a {:?} guest; QEMU said: {said:?}", self.board)))
            }
        }
    }

    /// Those that not every guest needs.
    fn modules(&self) -> Vec<&'static str> {
        let ext4 = if self.ext4_disk_mib > 0 { &EXT4_MODULES[..] } else { &[] };
        let vsock = if self.vsock.is_some() { &VSOCK_MODULES[..] } else { &[] };
        [ext4, vsock].concat()
    }

    fn vsock_arguments(&self, socket: &Path) -> Vec<String> {
        if self.vsock.is_none() {
            return Vec::new();
        }
        let device = match self.board {
            Board::MicroVm => "vhost-user-vsock-device,chardev=vsock",
            Board::Q35 => "vhost-user-vsock-pci,chardev=vsock",
        };
        let chardev = format!("socket,id=vsock,path={}", socket.display());
        ["-chardev", &chardev, "-device", device].map(str::to_owned).to_vec()
    }

    /// The disk's file lies in `folder` and goes with it.
    fn disk_arguments(&self, folder: &Path) -> Result<Vec<String>> {
        if self.ext4_disk_mib == 0 {
            return Ok(Vec::new());
        }
        let path = folder.join("disk");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.set_len(self.ext4_disk_mib << 20).with_context(|| format!("sizing {}", path.display()))?;
        let device = match self.board {
            Board::MicroVm => "virtio-blk-device,drive=disk",
            Board::Q35 => "virtio-blk-pci,drive=disk",
        };
        let drive = format!("if=none,id=disk,format=raw,cache=unsafe,file={}", path.display());
        Ok(["-drive", &drive, "-device", device].map(str::to_owned).to_vec())
    }

    fn arguments(&self, accelerator: Accelerator) -> Vec<String> {
        let memory_mib = self.memory_mib;
        let (machine, bus) = match self.board {
            Board::MicroVm => ("microvm,memory-backend=mem,rtc=on", "device"),
            Board::Q35 => ("q35,memory-backend=mem", "pci"),
        };
        let (accelerator, processor) = match accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg,thread=multi", "max"),
        };
        let mut all: Vec<String> = ["-machine", machine, "-accel", accelerator, "-cpu", processor]
            .into_iter()
            .chain(["-nodefaults", "-no-user-config", "-display", "none"])
            .map(str::to_owned)
            .collect();
        if !self.restarts {
            all.push("-no-reboot".to_owned());
        }
        let mut push = |name: &str, value: String| all.extend([name.to_owned(), value]);
        // With one possible processor QEMU emits guest atomics without the lock prefix, and words shared with the host would
        // tear: a second one must be possible, though it is never plugged.
        push("-smp", format!("{},maxcpus={}", self.processors, self.processors.max(2)));
        push("-m", format!("{memory_mib}M"));
        push("-object", format!("memory-backend-memfd,id=mem,size={memory_mib}M,share=on"));
        push("-chardev", "stdio,id=console,signal=off".to_owned());
        push("-serial", "chardev:console".to_owned());
        push("-device", format!("virtio-serial-{bus}"));
        push("-device", "virtserialport,chardev=agent,name=ringfort.agent".to_owned());
        for slot in 0..self.slots {
            push("-device", format!("pcie-root-port,id=slot{slot},chassis={slot}"));
        }
        for (number, share) in self.shares.iter().enumerate() {
            push("-chardev", format!("socket,id=fs{number},path={}", share.socket.display()));
            push(
                "-device",
                format!(
                    "vhost-user-fs-{bus},chardev=fs{number},tag={},queue-size=1024,num-request-queues={}",
                    share.tag, self.request_queues
                ),
            );
        }
        all
    }
}

fn kernel_arguments(accelerator: Accelerator, nonce: &str) -> String {
    let clock = match accelerator {
        Accelerator::Kvm => String::new(),
        // Without a given rate the kernel calibrates the counter against a timer, which emulation starves: half of the
        // boots then hang.
        Accelerator::Tcg => format!("tsc_early_khz={} tsc=reliable no_timer_check ", tsc::rate_khz()),
    };
    format!("{clock}console=ttyS0 panic=-1 reboot=t quiet loglevel=4 ringfort.nonce={nonce}")
}

fn nonce() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0u8; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// A running guest. Dropping it pulls the plug.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    agent: Agent,
    agent_socket: PathBuf,
    monitor_socket: PathBuf,
    console: Console,
    nonce: String,
    restarts: bool,
    folder: RunFolder,
    _vsock: Option<VsockDevice>,
    /// From QEMU's start to the agent's word.
    pub booted_in: Duration,
    pub accelerator: Accelerator,
}

impl Guest {
    /// Runs a shell script in the guest.
    pub fn shell(&self, script: &str) -> Result<Outcome> {
        self.agent.run(&["/bin/sh", "-c", script], COMMAND_TIMEOUT)
    }

    /// Runs a shell script that must succeed; returns its standard output.
    pub fn must(&self, script: &str) -> Result<String> {
        self.shell(script)?.success()
    }

    /// Runs a program that must succeed within `timeout`; returns its standard output.
    pub fn run(&self, arguments: &[&str], timeout: Duration) -> Result<String> {
        self.agent.run(arguments, timeout)?.success()
    }

    /// Starts a program and leaves it running.
    pub fn start(&self, arguments: &[&str]) -> Result<Task<'_>> {
        self.agent.start(arguments)
    }

    /// Mounts the device `tag` at `/mnt/tag`.
    pub fn mount(&self, tag: &str) -> Result<()> {
        self.must(&format!("mkdir -p /mnt/{tag} && mount -t virtiofs {tag} /mnt/{tag}")).map(drop)
    }

    /// Unmounts `/mnt/tag`, which also drops everything that the guest had cached of it.
    pub fn unmount(&self, tag: &str) -> Result<()> {
        self.must(&format!("cd / && umount /mnt/{tag}")).map(drop)
    }

    /// A connection to the machine's monitor.
    pub fn monitor(&self) -> Result<Monitor> {
        Monitor::connect(&self.monitor_socket)
    }

    /// Plugs a virtio-fs device with `tag`, served at `socket`, into a slot of [`Machine::free_slots`], and returns when it is mounted
    /// at `/mnt/tag`.
    pub fn plug(&self, slot: u32, tag: &str, socket: &Path) -> Result<()> {
        let mut monitor = self.monitor()?;
        let line = format!("plugged{slot}");
        let address = json!({ "type": "unix", "data": { "path": socket } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        monitor.run("chardev-add", json!({ "id": line, "backend": backend }))?;
        let device = json!({
            "driver": "vhost-user-fs-pci",
            "bus": format!("slot{slot}"),
            "chardev": line,
            "tag": tag,
            "queue-size": 1024,
        });
        monitor.run("device_add", device)?;
        let mount = format!("mount -t virtiofs {tag} /mnt/{tag}");
        self.must(&format!(
            "mkdir -p /mnt/{tag}; for wait in $(seq 200); do {mount} 2> /dev/null && exit 0; sleep 0.1; done; {mount}"
        ))
        .map(drop)
    }

    /// The console's last lines.
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// Restarts the guest's system at once, nothing unmounted or synced, while QEMU and its devices stay; returns when the
    /// agent listens again. For machines made with [`Machine::restarts`].
    pub fn restart(&mut self) -> Result<()> {
        if !self.restarts {
            bail!("a restart would end this machine: make it with Machine::restarts");
        }
        let said_bytes = self.console.said_bytes();
        let _last = self.agent.start(&["/bin/sh", "-c", "reboot -f"])?;
        self.agent.wait_ready(said_bytes, BOOT_TIMEOUT)?;
        // Frames cut in two by the restart would derange the stream: the new system gets a new connection.
        self.agent.hang_up();
        self.agent = Agent::connect(&self.agent_socket, &self.nonce, self.console.clone())?;
        Ok(())
    }

    /// Unmounts everything, powers off, and checks that the guest got there by itself and in health.
    pub fn shut_down(mut self) -> Result<()> {
        self.must("cd /; sync; for at in $(grep ' virtiofs ' /proc/mounts | cut -d' ' -f2); do umount $at || exit 1; done")?;
        // The marker is assembled in the guest so that an echo of this command cannot stand for it.
        let nonce = self.nonce.clone();
        let last = if self.restarts { "halt -f" } else { "reboot -f" };
        let _last = self.agent.start(&[
            "/bin/sh",
            "-c",
            &format!("printf 'ringfort-guest: %s {nonce}\\n' down > /dev/console; {last}"),
        ])?;
        self.console.expect(&format!("ringfort-guest: down {nonce}"), COMMAND_TIMEOUT)?;
        if self.restarts {
            self.stop_now();
        }
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        while self.child.try_wait().context("waiting for QEMU")?.is_none() {
            if Instant::now() > deadline {
                bail!(
                    "the guest said that it goes down, but QEMU still runs; console:\n{}",
                    self.console.tail()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.console.require_healthy()
    }

    /// The guest's memory, as a file of this host: below the hole for devices, a guest physical address is an offset into it.
    pub fn memory(&self) -> Result<PathBuf> {
        let descriptors = PathBuf::from(format!("/proc/{}/fd", self.child.id()));
        for entry in
            fs::read_dir(&descriptors).with_context(|| format!("listing {}", descriptors.display()))?
        {
            let path = entry?.path();
            if fs::read_link(&path)
                .is_ok_and(|link| link.to_string_lossy().starts_with("/memfd:memory-backend-memfd "))
            {
                return Ok(path);
            }
        }
        bail!("QEMU has no memory file open in {}", descriptors.display())
    }

    /// Ends the machine at once, as a power cut would.
    pub fn pull_the_plug(mut self) {
        self.stop_now();
    }

    /// The folder of QEMU's log and the image.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn stop_now(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop_now();
        if thread::panicking() {
            eprintln!("guest console:\n{}", self.console.tail());
        }
    }
}
