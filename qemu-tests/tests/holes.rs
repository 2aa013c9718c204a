//! Copies with `rf` keep the holes of files, on a volume that has no room for what lies in them.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use ringfort_qemu_tests::client::Client;
use ringfort_qemu_tests::local::LocalServer;

const SIZE_BYTES: u64 = 1 << 30;
const AT_BYTES: u64 = 700 << 20;
/// Of 4 KiB of data with what any file system may round that to.
const ALLOCATED_BYTES_MAX: u64 = 1 << 20;

fn sparse(path: &Path) -> Vec<u8> {
    let bytes: Vec<u8> = (0..4096u32).map(|index| (index % 251) as u8 | 1).collect();
    let file = File::create(path).unwrap();
    file.write_all_at(&bytes, AT_BYTES).unwrap();
    file.set_len(SIZE_BYTES).unwrap();
    bytes
}

/// Length, and bytes allocated, of a file of the volume.
fn extent(client: &Client, path: &str) -> (u64, u64) {
    let said: serde_json::Value =
        serde_json::from_str(&client.must(&["stat", "--json", path]).unwrap()).unwrap();
    let found = said.get(0).unwrap_or(&said);
    let number = |name: &str| found[name].as_u64().unwrap_or_else(|| panic!("no {name} in {said}"));
    (number("size_bytes"), number("allocated_bytes"))
}

#[test]
fn copies_keep_holes() {
    let server = LocalServer::start("128MiB").unwrap();
    let client = Client::new(&server.socket()).unwrap();
    let (sent, back) = (server.folder().join("sent"), server.folder().join("back"));
    let bytes = sparse(&sent);
    if fs::metadata(&sent).unwrap().blocks() * 512 > ALLOCATED_BYTES_MAX {
        println!("NOT TESTED: the file system of {} has no holes", sent.display());
        return;
    }
    client.must(&["put", sent.to_str().unwrap(), "/one"]).unwrap();
    client.must(&["cp", "/one", "/two"]).unwrap();
    for path in ["/one", "/two"] {
        let (size_bytes, allocated_bytes) = extent(&client, path);
        assert_eq!(size_bytes, SIZE_BYTES, "{path}");
        assert!((1..=ALLOCATED_BYTES_MAX).contains(&allocated_bytes), "{path}: {allocated_bytes} bytes");
    }
    client.must(&["get", "/two", back.to_str().unwrap()]).unwrap();
    let found = fs::metadata(&back).unwrap();
    assert_eq!(found.len(), SIZE_BYTES);
    assert!(found.blocks() * 512 <= ALLOCATED_BYTES_MAX, "{} sectors", found.blocks());
    let mut data = vec![0; bytes.len() + 2];
    File::open(&back).unwrap().read_exact_at(&mut data, AT_BYTES - 1).unwrap();
    assert!(data[0] == 0 && data[1..=bytes.len()] == bytes && data[bytes.len() + 1] == 0);

    // A file that is nothing but a hole, and one that ends with data.
    File::create(&sent).unwrap().set_len(5 << 20).unwrap();
    client.must(&["put", sent.to_str().unwrap(), "/hole"]).unwrap();
    assert_eq!(extent(&client, "/hole"), (5 << 20, 0));
    File::options().write(true).open(&sent).unwrap().write_all_at(b"end", 5 << 20).unwrap();
    client.must(&["put", sent.to_str().unwrap(), "/end"]).unwrap();
    client.must(&["get", "/end", back.to_str().unwrap()]).unwrap();
    assert!(fs::read(&back).unwrap() == fs::read(&sent).unwrap());
    // What is written as it comes has zeros where the holes are.
    let shown = client.must(&["cat", "/end"]).unwrap();
    assert!(shown.len() == (5 << 20) + 3 && shown.ends_with("\0end"), "{} bytes", shown.len());
    server.end().unwrap();
}
