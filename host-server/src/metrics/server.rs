//! Answers scrapers.
//!
//! # What clients cannot do
//! Hold memory: a request's head is bounded, and so is the number of connections. Hold the place of others: where there
//! are too many, the oldest gives way, and each has a bounded time. Load the volume: one report at a time is asked of it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ringfort_frontend::listen::{ListeningSocket, Who};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::families;
use super::request::{HEAD_BYTES_MAX, Refusal, Wanted, head_end, page_response, parse};
use crate::config::MetricsAddress;
use crate::report::Status;

/// Connections at a time.
const CLIENTS_MAX: usize = 32;

/// Connections that the kernel keeps for us.
const WAITING_MAX: i32 = 64;

/// A scraper that takes longer over its request, or over reading its answer, is turned away.
const PATIENCE: Duration = Duration::from_secs(10);

/// A volume that takes longer to report hangs.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// Where reports come from; none while there is none to be had.
pub trait Source: Send + Sync + 'static {
    fn report(&self) -> Pin<Box<dyn Future<Output = Option<Status>> + Send + '_>>;
}

/// A listening server. Dropping it removes its socket.
pub struct MetricsServer {
    listener: Listener,
    /// How an operator knows it.
    address: String,
}

enum Listener {
    Unix { listener: UnixListener, _socket: ListeningSocket },
    Loopback(TcpListener),
}

impl MetricsServer {
    /// Listens. To be called inside the control plane's runtime.
    pub fn bind(address: &MetricsAddress) -> Result<Self> {
        let what = || format!("serve metrics on {address}");
        let listener = match address {
            MetricsAddress::Unix(path) => {
                // Scrapers run as users of their own; the group may let them in. Nothing here changes the volume.
                let socket = ListeningSocket::bind(path, Who::Group, WAITING_MAX).with_context(what)?;
                let listener = socket.listener().try_clone().with_context(what)?;
                listener.set_nonblocking(true).with_context(what)?;
                let listener = UnixListener::from_std(listener).with_context(what)?;
                Listener::Unix { listener, _socket: socket }
            }
            MetricsAddress::Loopback(address) => {
                let listener = std::net::TcpListener::bind(address).with_context(what)?;
                listener.set_nonblocking(true).with_context(what)?;
                Listener::Loopback(TcpListener::from_std(listener).with_context(what)?)
            }
        };
        let address = match &listener {
            Listener::Unix { .. } => address.to_string(),
            // Port 0 lets the kernel choose one.
            Listener::Loopback(listener) => listener.local_addr().with_context(what)?.to_string(),
        };
        Ok(Self { listener, address })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Answers scrapers until dropped.
    pub async fn run(self, source: Arc<dyn Source>) {
        let turn = Arc::new(Mutex::new(()));
        let mut clients = Clients::default();
        loop {
            let stream: std::io::Result<Box<dyn Stream>> = match &self.listener {
                Listener::Unix { listener, .. } => {
                    listener.accept().await.map(|(stream, _)| Box::new(stream) as _)
                }
                Listener::Loopback(listener) => {
                    listener.accept().await.map(|(stream, _)| Box::new(stream) as _)
                }
            };
            match stream {
                Ok(stream) => {
                    clients.add(tokio::spawn(serve(stream, Arc::clone(&source), Arc::clone(&turn))))
                }
                Err(error) => {
                    tracing::warn!(address = self.address, %error, "cannot accept a scraper; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connections under way, oldest first. They end with this.
#[derive(Default)]
struct Clients(VecDeque<JoinHandle<()>>);

impl Clients {
    fn add(&mut self, client: JoinHandle<()>) {
        self.0.retain(|client| !client.is_finished());
        if self.0.len() >= CLIENTS_MAX
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(client);
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for client in &self.0 {
            client.abort();
        }
    }
}

async fn serve(mut stream: Box<dyn Stream>, source: Arc<dyn Source>, turn: Arc<Mutex<()>>) {
    let response = match timeout(PATIENCE, read_request(&mut stream)).await {
        Ok(Ok(Some(wanted))) => match report(&*source, &turn).await {
            Some(status) => page_response(&families::page(&status), wanted),
            None => Refusal::Unavailable.response(),
        },
        Ok(Ok(None)) => return,
        Ok(Err(refusal)) => refusal.response(),
        Err(_) => {
            tracing::debug!("a scraper took longer than {} s over its request", PATIENCE.as_secs());
            return;
        }
    };
    let answer = async {
        stream.write_all(&response).await?;
        stream.shutdown().await?;
        // What the client still sends is read, or closing would destroy the answer on its way.
        let mut rest = [0; 512];
        let mut room_bytes = HEAD_BYTES_MAX;
        while room_bytes > 0 {
            let read_bytes = stream.read(&mut rest).await?;
            if read_bytes == 0 {
                break;
            }
            room_bytes = room_bytes.saturating_sub(read_bytes);
        }
        std::io::Result::Ok(())
    };
    if let Ok(Err(error)) = timeout(PATIENCE, answer).await {
        tracing::debug!("a scraper left before its answer: {error}");
    }
}

/// The request; None where the client left without one.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Wanted>, Refusal> {
    let mut head = Vec::with_capacity(512);
    loop {
        if head_end(&head).is_some() {
            return parse(&head).map(Some);
        }
        if head.len() >= HEAD_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        let mut limited = (&mut *stream).take((HEAD_BYTES_MAX - head.len()) as u64);
        match limited.read_buf(&mut head).await {
            Ok(0) if head.is_empty() => return Ok(None),
            Ok(0) => return Err(Refusal::BadRequest),
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
    }
}

async fn report(source: &dyn Source, turn: &Mutex<()>) -> Option<Status> {
    let asked = async {
        let _turn = turn.lock().await;
        source.report().await
    };
    timeout(REPORT_PATIENCE, asked).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    struct Example;

    impl Source for Example {
        fn report(&self) -> Pin<Box<dyn Future<Output = Option<Status>> + Send + '_>> {
            Box::pin(async { Some(example::served()) })
        }
    }

    struct Hangs;

    impl Source for Hangs {
        fn report(&self) -> Pin<Box<dyn Future<Output = Option<Status>> + Send + '_>> {
            Box::pin(async { None })
        }
    }

    /// Runs `client` against a server on a port of its own.
    fn with_server(source: impl Source, client: impl FnOnce(SocketAddr) + Send + 'static) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = MetricsServer::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
            let address = server.address().parse().unwrap();
            let client = tokio::task::spawn_blocking(move || client(address));
            tokio::select! {
                () = server.run(Arc::new(source)) => unreachable!(),
                result = client => result.unwrap(),
            }
        });
    }

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        // The server may have answered and hung up before everything is written.
        let _ = stream.write_all(request);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

    #[test]
    fn a_scraper_gets_a_whole_page() {
        with_server(Example, |address| {
            let answer = ask(address, GET);
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(head.contains("text/plain; version=0.0.4"), "{head}");
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
            assert_eq!(body, families::page(&example::served()));
        });
    }

    #[test]
    fn garbage_gets_a_refusal_or_a_closed_door_and_the_next_scraper_its_page() {
        with_server(Example, |address| {
            for garbage in [
                &b"\x16\x03\x01\x02\x00\x01\n\n"[..],
                b"\n\n",
                b"GET",
                b"POST /metrics HTTP/1.1\r\n\r\n",
                b"GET /other HTTP/1.1\r\n\r\n",
            ] {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(garbage).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 4"), "{garbage:?}: {answer}");
            }
            let endless = [GET[..20].to_vec(), vec![b'x'; 1 << 20]].concat();
            let answer = ask(address, &endless);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
            assert!(ask(address, GET).starts_with("HTTP/1.1 200"));
        });
    }

    #[test]
    fn clients_that_say_nothing_give_way_to_one_that_does() {
        with_server(Example, |address| {
            let idle: Vec<_> = (0..CLIENTS_MAX * 3).map(|_| TcpStream::connect(address).unwrap()).collect();
            assert!(ask(address, GET).starts_with("HTTP/1.1 200"));
            drop(idle);
        });
    }

    #[test]
    fn a_volume_that_gives_no_report_is_told_as_unavailable() {
        with_server(Hangs, |address| {
            assert!(ask(address, GET).starts_with("HTTP/1.1 503"));
        });
    }
}
