//! `notes VOLUME-ADDRESS TEXT...`: keeps lines in /notes/log of a volume, and shows what is there.
//!
//!     cargo run --example notes -- unix:/run/ringfort/data.ctl "a line"

use std::error::Error;

use ringfort_guest::{Address, Open, connect};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: Address = arguments.next().ok_or("notes VOLUME-ADDRESS TEXT...")?.parse()?;
    let volume = connect(address.path())?;
    if volume.stat("/notes").is_err() {
        volume.create_directory("/notes", 0o755)?;
    }
    let log = volume.open("/notes/log", Open::to_write().create(0o644))?;
    for line in arguments {
        log.append(format!("{line}\n").as_bytes())?;
    }
    log.sync()?;

    print!("{}", String::from_utf8_lossy(&volume.read_file("/notes/log")?));
    for entry in volume.read_directory("/notes", true)? {
        let entry = entry?;
        let size_bytes = entry.attributes.map(|found| found.size_bytes).unwrap_or_default();
        println!("{}: {size_bytes} bytes", String::from_utf8_lossy(&entry.name));
    }
    Ok(())
}
