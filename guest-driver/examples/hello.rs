use ringfort_guest::{Address, Open, connect};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let volume = connect(Address::from_environment()?.path())?; // RINGFORT_CONNECT, or a guest's daemon
    let file = volume.open("/hello", Open::to_write().create(0o644))?;
    file.write_at(b"hello\n", 0)?;
    file.sync()?; // on stable media
    let text = volume.read_file("/hello")?; // opened, read and closed in one submission
    print!("{}", String::from_utf8_lossy(&text));
    Ok(())
}
