//! `serve --metrics`: scraped, and read as strictly as the format allows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use crate::exposition::Page;
use crate::guest::{Guest, LOOKUP};
use crate::scene::{Server, Volume, contains_all, refused, serve_command};

fn get(mut stream: impl Read + Write) -> String {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ringfort\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

#[test]
fn a_scrape_of_a_unix_socket_says_what_status_says() {
    let volume = Volume::create(&["--data", "2+1"]);
    let path = volume.socket("metrics");
    let socket = volume.socket("guest");
    let address = format!("unix:{}", path.display());
    let arguments = [volume.path(), "--virtiofs", socket.to_str().unwrap(), "--metrics", &address];
    let server = Server::start(serve_command(&arguments));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let page = Page::parse(&get(UnixStream::connect(&path).unwrap()));
    let status = volume.status();
    let id = status["volume"].as_str().unwrap();
    assert_eq!(page.value("ringfort_volume_info", &[("volume", id)]), 1.0);
    assert_eq!(page.value("ringfort_volume_health", &[("state", "healthy")]), 1.0);
    assert_eq!(
        page.value("ringfort_space_total_bytes", &[]),
        status["space"]["total_bytes"].as_f64().unwrap()
    );
    assert_eq!(page.value("ringfort_log_size_bytes", &[]), status["log"]["size_bytes"].as_f64().unwrap());
    assert_eq!(page.value("ringfort_component_state", &[("component", "2"), ("state", "live")]), 1.0);
    let written = status["counters"]["log_bytes"].as_f64().unwrap();
    assert_eq!(page.value("ringfort_path_written_bytes_total", &[("path", "log")]), written);
    server.stop();
    assert!(!path.exists(), "the socket is removed");
}

#[test]
fn counters_equal_the_operations_made() {
    let volume = Volume::create(&[]);
    let path = volume.socket("metrics");
    let socket = volume.socket("guest");
    let address = format!("unix:{}", path.display());
    let arguments = [volume.path(), "--virtiofs", socket.to_str().unwrap(), "--metrics", &address];
    let server = Server::start(serve_command(&arguments));
    let scrape = || Page::parse(&get(UnixStream::connect(&path).unwrap()));
    assert_eq!(scrape().value("ringfort_guest_mounted", &[]), 0.0);

    let mut guest = Guest::connect(&socket);
    let file = guest.create("file");
    // The first new file has made a promise about inode numbers durable: a sync of the filesystem's own.
    let before = scrape();
    for block in 0..30 {
        guest.write(file, block * 4096, &[block as u8; 4096]);
    }
    for _ in 0..3 {
        guest.sync(file);
    }
    assert_eq!(guest.read(file, 4096, 4096), [1; 4096]);
    for _ in 0..5 {
        assert_eq!(guest.call(LOOKUP, 1, b"nothing\0"), Err(2));
    }

    let page = scrape();
    for (operation, count) in
        [("init", 1), ("create", 1), ("write", 30), ("fsync", 3), ("read", 1), ("lookup", 5)]
    {
        let counted = page.value("ringfort_operation_duration_seconds_count", &[("operation", operation)]);
        assert_eq!(counted, f64::from(count), "{operation}");
    }
    let of_guest = |name: &str| page.value(name, &[("socket", socket.to_str().unwrap())]);
    assert_eq!(of_guest("ringfort_guest_requests_total"), 41.0);
    assert_eq!(of_guest("ringfort_guest_errors_total"), 5.0);
    assert_eq!(of_guest("ringfort_guest_written_bytes_total"), 30.0 * 4096.0);
    assert_eq!(of_guest("ringfort_guest_read_bytes_total"), 4096.0);
    assert_eq!(of_guest("ringfort_guest_malformed_requests_total"), 0.0);
    assert_eq!(of_guest("ringfort_guest_sessions_total"), 1.0);
    assert_eq!(of_guest("ringfort_guest_mounted"), 1.0);
    let grown = |name: &str, labels: &[(&str, &str)]| page.value(name, labels) - before.value(name, labels);
    assert_eq!(grown("ringfort_syncs_total", &[]), 3.0);
    assert_eq!(grown("ringfort_user_bytes_total", &[]), 30.0 * 4096.0);
    // Synced small writes are on each of three mirrors, and so are flushes.
    assert!(grown("ringfort_path_written_bytes_total", &[("path", "log")]) >= 3.0 * 30.0 * 4096.0);
    for mirror in ["0", "1", "2"] {
        assert!(grown("ringfort_component_flushes_total", &[("component", mirror)]) >= 1.0, "{mirror}");
    }
    let requests = &volume.status()["served"]["guests"][0]["requests"];
    assert_eq!((&requests["write"], &requests["fsync"]), (&30.into(), &3.into()));
    drop(guest);
    server.stop();
}

#[test]
fn a_loopback_port_is_scraped_and_clients_that_misbehave_hinder_nobody() {
    let volume = Volume::create(&[]);
    let socket = volume.socket("guest");
    let arguments = [volume.path(), "--virtiofs", socket.to_str().unwrap(), "--metrics", "127.0.0.1:0"];
    let mut server = Server::spawn(serve_command(&arguments));
    let line = server.wait_for_line("metrics are served on ");
    let address = line.split("served on ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    server.wait_for_line("ready");
    let idle: Vec<_> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut garbage = TcpStream::connect(&address).unwrap();
    let _ = garbage.write_all(&[0xff; 100_000]);
    Page::parse(&get(TcpStream::connect(&address).unwrap()));
    drop((idle, garbage));
    server.stop();
}

#[test]
fn addresses_that_others_reach_are_refused() {
    for address in ["0.0.0.0:9100", "[::]:9100", "10.0.0.1:9100", "9100"] {
        let message = refused(&["serve", "x", "--virtiofs", "s", "--metrics", address]);
        contains_all(&message, &["127.0.0.1:PORT"]);
    }
}
