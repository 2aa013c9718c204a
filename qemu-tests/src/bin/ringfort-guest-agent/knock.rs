//! A stranger at a port of the host: sends bytes through vsock as they are given, and shows what comes back.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// The host.
const HOST_CID: u32 = 2;
/// A server that does not answer is not waited for longer.
const SILENCE: Duration = Duration::from_secs(2);

/// Connects to `port`, sends the bytes that `hex` says, and prints `answered HEX` with all that comes until the other side hangs up
/// or falls silent, then `closed` or `open`.
pub fn knock(port: u32, hex: &str) -> Result<()> {
    let bytes = from_hex(hex)?;
    let mut stream = dial(port)?;
    stream.set_read_timeout(Some(SILENCE)).context("setting a timeout")?;
    stream.write_all(&bytes).context("sending")?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    let end = loop {
        match stream.read(&mut piece) {
            Ok(0) => break "closed",
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break "open",
            Err(_) => break "closed",
        }
    };
    let answer: String = answer.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("answered {answer}\n{end}");
    Ok(())
}

/// Sends a byte to whoever echoes it at `port`, `count` times, each after a pause in which everybody falls asleep; says the median in
/// nanoseconds.
pub fn time_echoes(port: u32, count: u64) -> Result<()> {
    let mut stream = dial(port)?;
    let mut samples = Vec::new();
    for _ in 0..count.max(1) {
        std::thread::sleep(Duration::from_micros(500));
        let began = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        samples.push(began.elapsed());
    }
    samples.sort();
    println!("{}", samples[samples.len() / 2].as_nanos());
    Ok(())
}

fn dial(port: u32) -> Result<UnixStream> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .context("creating a vsock socket")?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, port))
        .with_context(|| format!("connecting to port {port} of the host"))?;
    // A stream is one whatever its family.
    Ok(UnixStream::from(socket))
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        bail!("{text:?} is no bytes in hexadecimal");
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16);
    (0..text.len()).step_by(2).map(|at| byte(at).with_context(|| format!("{text:?} at {at}"))).collect()
}
