//! More connections than are served at a time.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ringfort_protocol::command::Opcode;
use ringfort_protocol::control::message::{Echo, Message, Reason, Role};
use ringfort_protocol::version::Version;

use super::fake::*;
use crate::channel::Limits;
use crate::channel::connection::{Connection, Ended};
use crate::channel::connections::{CONNECTION_COUNT_MAX, Connections, USER_CONNECTION_COUNT_MAX};
use crate::channel::control::{Conversation, Identity, Peer};
use crate::channel::fuzzing::Yes;

#[test]
fn a_flood_of_strangers_who_say_nothing_does_not_keep_the_daemon_out() {
    // Nobody waits for them to run out of time.
    with_guest(Limits { hello_ms_max: 600_000, ..Limits::default() }, |scene| {
        let mut strangers: Vec<Wire> = (0..150).map(|_| scene.connect()).collect();
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut client = scene.client(&mut daemon, 1, &[HUGE], HUGE_SHIFT);
        strangers.extend((0..150).map(|_| scene.connect()));
        let nop = client.command(Opcode::Nop);
        assert_eq!(client.call(nop).status, 0);
        let echo = Message::Ping(Echo::default());
        assert_eq!(daemon.ask(&echo), Message::Pong(Echo::default()), "whoever has spoken stays");
        let _doorbell = scene.client(&mut daemon, 2, &[2 * HUGE], HUGE_SHIFT);
        assert!(strangers[..200].iter_mut().all(|stranger| stranger.next().is_none()), "the oldest go");
    });
}

struct Room {
    connections: Connections<Yes>,
    all: Vec<(Arc<Connection<Yes>>, UnixStream)>,
}

impl Room {
    fn enter(&mut self, uid: u32) -> u64 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer { uid, gid: uid, groups: Vec::new() };
        let limits = Limits::default();
        let conversation =
            Conversation::new(peer, limits, Identity { server: [0; 16], volume: [0; 16] }, Yes);
        let connection = Connection::new(ours, conversation, &limits, Arc::default());
        let number = self.all.len() as u64;
        self.connections.enter(number, uid, &connection);
        self.all.push((connection, theirs));
        number
    }

    fn is_hung_up_on(&self, number: u64) -> bool {
        let stream = &self.all[number as usize].1;
        stream.set_nonblocking(true).unwrap();
        (&*stream).read(&mut [0]).is_ok_and(|read| read == 0)
    }
}

#[test]
fn one_user_s_connections_leave_room_for_another_s() {
    let mut room = Room { connections: Connections::default(), all: Vec::new() };
    for _ in 0..USER_CONNECTION_COUNT_MAX {
        let number = room.enter(1000);
        room.connections.welcome(number).unwrap();
    }
    let more = room.enter(1000);
    let refusal = room.connections.welcome(more).unwrap_err();
    assert!(refusal.reason == Reason::Limit && refusal.text.contains("1000"), "{refusal:?}");
    let other = room.enter(0);
    room.connections.welcome(other).unwrap();
    assert!(room.connections.leave(0));
    room.connections.welcome(more).unwrap();
}

#[test]
fn room_is_made_at_the_cost_of_the_oldest_who_said_nothing() {
    let mut room = Room { connections: Connections::default(), all: Vec::new() };
    for _ in 0..CONNECTION_COUNT_MAX {
        assert!(room.connections.make_room());
        room.enter(1000);
    }
    assert!(!room.connections.make_room(), "each has a moment to say something");
    let speaks = Arc::clone(&room.all[0].0);
    let conversation = thread::spawn(move || speaks.converse());
    let hello = hello(Role::Process.number(), FIRST_BOOT);
    (&room.all[0].1).write_all(&hello.encode(Version::CHANNEL)).unwrap();
    thread::sleep(Duration::from_millis(120));
    for oldest in 1..4 {
        assert!(!room.is_hung_up_on(oldest));
        assert!(room.connections.make_room());
        assert!(room.is_hung_up_on(oldest));
        room.enter(1000);
    }
    room.all[0].0.hang_up();
    assert!(matches!(conversation.join().unwrap(), Ended::HungUp), "it had said something, and stayed");
}
