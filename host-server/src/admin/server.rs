//! Answering operators.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::place::{Address, socket_path};
use super::protocol::{Answer, REQUEST_BYTES_MAX, Request, RequestKind, Response};

/// Clients at a time; another one is turned away.
const CLIENTS_MAX: usize = 16;

/// A client that says nothing for so long is turned away, as is one that does not read.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where answers come from.
pub trait Source: Send + Sync + 'static {
    fn answer(&self, request: RequestKind) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>>;
}

/// A listening admin socket. Dropping it removes the socket.
pub struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
    own_uid: u32,
}

impl AdminServer {
    /// Listens in `directory`, whose lock the caller holds: a socket found there is nobody's.
    pub fn bind(directory: &Path) -> Result<Self> {
        let path = socket_path(directory);
        let bind = || {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let address = Address::of(directory)?;
            let listener = UnixListener::bind(address.path())?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().with_context(|| format!("listen on the admin socket {}", path.display()))?;
        Ok(Self { listener, path, own_uid: nix::unistd::geteuid().as_raw() })
    }

    /// Answers clients until dropped.
    pub async fn run(self, source: Arc<dyn Source>) {
        let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(socket = %self.path.display(), %error, "cannot accept an operator's connection; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&clients).try_acquire_owned() else { continue };
            if let Err(error) = self.admit(&stream) {
                tracing::warn!(socket = %self.path.display(), %error, "an operator was turned away");
                continue;
            }
            let source = Arc::clone(&source);
            tokio::spawn(async move {
                if let Err(error) = converse(stream, &*source).await {
                    tracing::debug!("admin client: {error}");
                }
                drop(place);
            });
        }
    }

    fn admit(&self, stream: &UnixStream) -> Result<(), Error> {
        let uid = stream.peer_cred()?.uid();
        if uid == self.own_uid || uid == 0 {
            return Ok(());
        }
        let found = format!("it runs as user {uid}, only {} and root are served", self.own_uid);
        Err(Error::new(ErrorKind::PermissionDenied, found))
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn converse(mut stream: UnixStream, source: &dyn Source) -> Result<(), Error> {
    let (reading, mut writing) = stream.split();
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reading).take(REQUEST_BYTES_MAX as u64);
        timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let ended = line.last() == Some(&b'\n');
        let answer = match Request::parse(&line) {
            _ if !ended && line.len() == REQUEST_BYTES_MAX => {
                Answer::Error(format!("the request is longer than {REQUEST_BYTES_MAX} bytes"))
            }
            Ok(request) => source.answer(request.request).await,
            Err(reason) => Answer::Error(reason),
        };
        let mut response = serde_json::to_vec(&Response::new(answer))?;
        response.push(b'\n');
        timeout(PATIENCE, writing.write_all(&response)).await??;
        if !ended {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::{Asked, ask};
    use super::*;
    use std::io::{Read, Write};

    struct Refuses;

    impl Source for Refuses {
        fn answer(&self, _: RequestKind) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
            Box::pin(async { Answer::Error("not today".into()) })
        }
    }

    /// Runs `client` against a server in a directory with a very long path.
    fn with_server(client: impl FnOnce(&Path) + Send + 'static) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("d".repeat(150));
        std::fs::create_dir(&directory).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = AdminServer::bind(&directory).unwrap();
            let asking = directory.clone();
            let client = tokio::task::spawn_blocking(move || client(&asking));
            tokio::select! {
                () = server.run(Arc::new(Refuses)) => unreachable!(),
                result = client => result.unwrap(),
            }
        });
        assert!(!socket_path(&directory).exists(), "the socket is removed");
    }

    #[test]
    fn a_client_gets_the_answer_even_where_the_path_is_too_long_for_an_address() {
        with_server(|directory| {
            let mode = std::fs::metadata(socket_path(directory)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let Asked::Answered(answer) = ask(directory, RequestKind::Status).unwrap() else {
                panic!("no answer")
            };
            assert!(matches!(*answer, Answer::Error(reason) if reason == "not today"));
        });
    }

    #[test]
    fn a_line_without_end_is_refused_and_the_connection_closed() {
        with_server(|directory| {
            let address = Address::of(directory).unwrap();
            let mut stream = std::os::unix::net::UnixStream::connect(address.path()).unwrap();
            // The server may hang up before everything is written.
            let _ = stream.write_all(&vec![b'x'; 1 << 16]);
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            assert!(answer.is_empty() || answer.contains("longer than"), "{answer}");
        });
    }

    #[test]
    fn without_a_server_nobody_listens() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(ask(directory.path(), RequestKind::Status).unwrap(), Asked::NobodyListens));
    }
}
