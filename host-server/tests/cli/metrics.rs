//! `serve --metrics`: scraped, and read as strictly as the format allows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use crate::exposition::Page;
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
