//! The clients of a channel, on the thread that owns the volume.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, mpsc};

use nix::sys::socket::{MsgFlags, recv, send};
use ringfort_engine::engine::Engine;
use ringfort_engine::mailbox::Receiver;
use ringfort_filesystem::operation::Credentials;
use ringfort_protocol::control::message::Reason;
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::responder::Responder;

use super::connection::{CARRIED_LOOK, CARRIED_WITHIN};
use super::control::{Bells, Refusal, RingAttachment};
use super::data::DataArea;
use super::metrics::ChannelMetrics;
use super::peer;
use super::ring::{CredentialTable, Doorbell, RingParts, RingServer};
use super::session::Session;
use crate::service::Service;

/// A region of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId {
    pub connection: u64,
    pub region: u32,
}

/// Where the answer to an event goes. Dropping it says that the volume is gone.
pub type Answer = mpsc::Sender<Result<(), Refusal>>;

/// What happens to clients, in order.
pub enum Event {
    Credential {
        client: ClientId,
        number: u32,
        credentials: Credentials,
        answer: Answer,
    },
    Attach {
        client: ClientId,
        ring: u32,
        attachment: Box<RingAttachment>,
        answer: Answer,
    },
    /// Answered when nothing of the ring, or of the client where none is named, is under way.
    Detach {
        client: ClientId,
        ring: Option<u32>,
        answer: Answer,
    },
    /// Answered when nothing of the client's memory is used.
    Suspend {
        client: ClientId,
        answer: Answer,
    },
    Resume {
        client: ClientId,
        memory: SharedMemory,
        answer: Answer,
    },
    /// The doorbell of a ring that was attached without one.
    Bell {
        client: ClientId,
        ring: u32,
        connection: OwnedFd,
        answer: Answer,
    },
}

struct Client<S: Service> {
    session: Rc<Session<S>>,
    credentials: CredentialTable,
    rings: HashMap<u32, Rc<RingServer<S>>>,
    /// Doorbells of rings, where they are connections that something else carries.
    bells: HashMap<u32, Rc<OwnedFd>>,
    metrics: Arc<ChannelMetrics>,
}

impl<S: Service> Client<S> {
    async fn end(self) {
        for ring in self.rings.into_values() {
            ring.halt().await;
            self.metrics.rings.leave();
        }
        self.session.end().await;
        self.metrics.regions.leave();
    }
}

/// Rings a client through a socket, without waiting for it.
struct SocketDoorbell(OwnedFd);

/// A connection on which every byte is one ring, either way.
struct ConnectionDoorbell(Rc<OwnedFd>);

impl Doorbell for ConnectionDoorbell {
    fn ring(&self) {
        // As for a socket.
        let _ = send(self.0.as_raw_fd(), &[1], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }

    fn clear(&self) {
        // Where a client has filled the connection its next ring would not be seen. More than this at a time wakes us again.
        let mut rung = [0; 4096];
        let _ = recv(self.0.as_raw_fd(), &mut rung, MsgFlags::MSG_DONTWAIT);
    }
}

impl Doorbell for SocketDoorbell {
    fn ring(&self) {
        // A socket that is full rings already, and one that is closed has nobody to wake.
        let _ = send(self.0.as_raw_fd(), &[1], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}

/// Serves events until every sender is gone.
pub async fn run<S: Service>(
    engine: Rc<dyn Engine>,
    service: Rc<S>,
    metrics: Arc<ChannelMetrics>,
    mut events: Receiver<Event>,
) {
    let clients: RefCell<HashMap<ClientId, Client<S>>> = RefCell::default();
    while let Some(event) = events.recv().await {
        match event {
            Event::Credential { client, number, credentials, answer } => {
                begin(&clients, client, &service, &metrics).await;
                if let Some(client) = clients.borrow().get(&client) {
                    client.credentials.borrow_mut().insert(number, Rc::new(credentials));
                }
                reply(&answer, Ok(()));
            }
            Event::Attach { client, ring, attachment, answer } => {
                begin(&clients, client, &service, &metrics).await;
                let attached = match clients.borrow_mut().get_mut(&client) {
                    Some(client) => attach(&engine, client, ring, *attachment),
                    None => Err(Refusal::new(Reason::Unknown, "the client is gone")),
                };
                reply(&answer, attached);
            }
            Event::Detach { client, ring, answer } => {
                let ended = match ring {
                    None => clients.borrow_mut().remove(&client).map(Ended::Client),
                    Some(ring) => {
                        let mut clients = clients.borrow_mut();
                        let ended = clients.get_mut(&client).and_then(|client| {
                            client.bells.remove(&ring);
                            client.rings.remove(&ring)
                        });
                        ended.map(Ended::Ring)
                    }
                };
                // Others are served while what is under way ends.
                let metrics = Arc::clone(&metrics);
                engine.spawn(Box::pin(async move {
                    match ended {
                        Some(Ended::Client(client)) => client.end().await,
                        Some(Ended::Ring(ring)) => {
                            ring.halt().await;
                            metrics.rings.leave();
                        }
                        None => {}
                    }
                    reply(&answer, Ok(()));
                }));
            }
            Event::Suspend { client, answer } => {
                let rings = rings_of(&clients, client);
                let bells: Vec<_> = match clients.borrow().get(&client) {
                    Some(client) => client.bells.values().cloned().collect(),
                    None => Vec::new(),
                };
                let clock = Rc::clone(&engine);
                engine.spawn(Box::pin(async move {
                    for ring in rings {
                        ring.suspend().await;
                    }
                    until_carried(&*clock, &bells).await;
                    reply(&answer, Ok(()));
                }));
            }
            Event::Resume { client, memory, answer } => {
                let all = rings_of(&clients, client).iter().all(|ring| ring.resume(&memory));
                let outside = || Refusal::new(Reason::Layout, "a ring leaves the memory that was proved");
                reply(&answer, if all { Ok(()) } else { Err(outside()) });
            }
            Event::Bell { client, ring, connection, answer } => {
                let hung = match clients.borrow_mut().get_mut(&client) {
                    Some(client) => set_bell(&engine, client, ring, connection),
                    None => Err(ring_has_ended()),
                };
                reply(&answer, hung);
            }
        }
    }
    for client in clients.take().into_values() {
        client.end().await;
    }
}

fn rings_of<S: Service>(
    clients: &RefCell<HashMap<ClientId, Client<S>>>,
    id: ClientId,
) -> Vec<Rc<RingServer<S>>> {
    clients.borrow().get(&id).map(|client| client.rings.values().cloned().collect()).unwrap_or_default()
}

fn set_bell<S: Service>(
    engine: &Rc<dyn Engine>,
    client: &mut Client<S>,
    ring: u32,
    connection: OwnedFd,
) -> Result<(), Refusal> {
    let server = client.rings.get(&ring).ok_or_else(ring_has_ended)?;
    let heard = connection.try_clone().map_err(|error| {
        Refusal::new(Reason::Limit, format!("duplicate the descriptor of a doorbell: {error}"))
    })?;
    let watch = engine.watch(Box::new(heard)).ok_or_else(cannot_be_rung)?;
    let connection = Rc::new(connection);
    server.set_doorbell(Box::new(ConnectionDoorbell(Rc::clone(&connection))), watch);
    client.bells.insert(ring, connection);
    Ok(())
}

fn ring_has_ended() -> Refusal {
    Refusal::new(Reason::Unknown, "the ring has ended")
}

/// Returns when every ring of these doorbells was carried, or takes too long. They are not rung meanwhile.
async fn until_carried(engine: &dyn Engine, bells: &[Rc<OwnedFd>]) {
    let looks = CARRIED_WITHIN.as_millis() / CARRIED_LOOK.as_millis();
    for _ in 0..looks {
        if bells.iter().all(peer::has_read_all) {
            return;
        }
        engine.sleep(CARRIED_LOOK).await;
    }
}

fn cannot_be_rung() -> Refusal {
    Refusal::new(Reason::Limit, "this server cannot be rung by clients: it runs without io_uring")
}

enum Ended<S: Service> {
    Client(Client<S>),
    Ring(Rc<RingServer<S>>),
}

fn reply(answer: &Answer, what: Result<(), Refusal>) {
    // The connection may have given up waiting.
    let _ = answer.send(what);
}

/// Begins a client where it is new.
async fn begin<S: Service>(
    clients: &RefCell<HashMap<ClientId, Client<S>>>,
    id: ClientId,
    service: &Rc<S>,
    metrics: &Arc<ChannelMetrics>,
) {
    if clients.borrow().contains_key(&id) {
        return;
    }
    let session = Rc::new(Session::begin(Rc::clone(service)).await);
    let metrics = Arc::clone(metrics);
    metrics.regions.enter();
    let client =
        Client { session, credentials: Rc::default(), rings: HashMap::new(), bells: HashMap::new(), metrics };
    clients.borrow_mut().insert(id, client);
}

fn attach<S: Service>(
    engine: &Rc<dyn Engine>,
    client: &mut Client<S>,
    ring: u32,
    attachment: RingAttachment,
) -> Result<(), Refusal> {
    let RingAttachment { memory, layout, data, command_bytes_max, bells } = attachment;
    let data = DataArea::new(memory.clone(), data, command_bytes_max)
        .ok_or_else(|| Refusal::new(Reason::Layout, "the data area leaves the region"))?;
    let (watch, doorbell): (_, Option<Box<dyn Doorbell>>) = match bells {
        Bells::Descriptors { doorbell, wake } => {
            let watch = engine.watch(Box::new(doorbell)).ok_or_else(cannot_be_rung)?;
            (Some(watch), Some(Box::new(SocketDoorbell(wake))))
        }
        Bells::Connection(_) => (None, None),
    };
    let parts = RingParts {
        session: Rc::clone(&client.session),
        credentials: Rc::clone(&client.credentials),
        slot_count: layout.slot_count(),
        data,
        doorbell,
        metrics: Arc::clone(&client.metrics),
    };
    let responder = Responder::new(memory, layout);
    let server = RingServer::start(Rc::clone(engine), parts, responder, watch);
    client.rings.insert(ring, server);
    client.metrics.rings.enter();
    Ok(())
}
