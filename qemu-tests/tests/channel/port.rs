//! The port of the host that a guest's daemon connects to: who learns of it, and what those get who should not have.

use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::machine::{Board, Guest, Machine};
use ringfort_qemu_tests::scene::{MOUNTED, Scene};

const PORT: u32 = 21_062;

/// Kinds of messages.
const HELLO: u16 = 1;
const WELCOME: u16 = 2;
const REFUSED: u16 = 13;
const PING: u16 = 14;
/// Roles of a Hello.
const GUEST_DAEMON: u16 = 1;
const PROCESS: u16 = 2;
const DOORBELL: u16 = 3;
/// Reasons.
const NOT_ALLOWED: u16 = 3;
const NO_MESSAGE: u16 = 6;

/// A message with its envelope, in hexadecimal.
fn message(kind: u16, body: &[u8]) -> String {
    let mut bytes = b"RfCt".to_vec();
    bytes.extend_from_slice(&1u16.to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(body);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hello(role: u16, secret: &[u8]) -> String {
    let mut body = Vec::new();
    for number in [1u16, 1, role, 0] {
        body.extend_from_slice(&number.to_le_bytes());
    }
    body.extend_from_slice(&[0; 8]);
    body.extend_from_slice(secret);
    body.extend_from_slice(&[0; 16]);
    message(HELLO, &body)
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

/// What the port answers `user` of the guest, and whether it hung up behind it.
fn knock(guest: &Guest, user: &str, hex: &str) -> (Vec<u8>, bool) {
    let said = guest.must(&format!("su {user} -c '{AGENT} knock {PORT} {hex}'")).unwrap();
    let (answer, end) = said.strip_prefix("answered ").unwrap().split_once('\n').unwrap();
    (bytes(answer), end == "closed\n")
}

#[test]
fn only_root_of_the_guest_learns_how_to_speak_on_the_control_port() {
    let scene = Scene::new("channel-port", "1GiB").unwrap();
    let server = scene.serve_with(1, &["--channel", &scene.channel(0)]).unwrap();
    let machine = Machine::new(Board::MicroVm).vsock(&scene.vsock(0));
    let guest = scene.boot(&machine, 0).unwrap();

    let show = format!("{AGENT} xattr-show {MOUNTED} trusted.ringfort.channel");
    let invitation = bytes(guest.must(&show).unwrap().trim());
    assert_eq!((invitation.len(), &invitation[..4], number(&invitation, 4)), (32, &b"RFin"[..], 1));
    assert_eq!(u32::from(number(&invitation, 8)), PORT);
    let secret = &invitation[16..];
    assert_ne!(secret, [0; 16]);
    let refused = guest.shell(&format!("su tests -c '{show}'")).unwrap();
    assert!(refused.status != 0 && refused.stdout.is_empty(), "{refused:?}");

    // Whoever does not know the secret is refused, whatever it says that it is.
    for (user, role, secret) in [
        ("tests", GUEST_DAEMON, &[0; 16][..]),
        ("root", GUEST_DAEMON, &[0x5a; 16]),
        ("tests", PROCESS, &[0; 16]),
        ("root", PROCESS, secret),
        ("tests", DOORBELL, &[0; 16]),
    ] {
        let (answer, closed) = knock(&guest, user, &hello(role, secret));
        assert!(closed, "role {role} of {user}");
        assert!(answer.len() > 16 + 16, "role {role} of {user} was told nothing: {answer:?}");
        assert_eq!((number(&answer, 6), number(&answer, 16 + 2)), (REFUSED, NOT_ALLOWED), "{role} of {user}");
    }
    // Before the Hello no other message counts, and no bytes that are none. (Were more sent than the server reads, the vsock device
    // would not tell the guest of the end.)
    for nothing in [message(PING, &[0; 8]), "00".repeat(16)] {
        let (answer, closed) = knock(&guest, "tests", &nothing);
        assert!(closed && (answer.is_empty() || number(&answer, 6) == REFUSED), "{nothing}: {answer:?}");
    }
    let (answer, _) = knock(&guest, "tests", &message(HELLO, &[0; 3]));
    assert_eq!((number(&answer, 6), number(&answer, 16 + 2)), (REFUSED, NO_MESSAGE));
    let (answer, closed) = knock(&guest, "root", &hello(GUEST_DAEMON, secret));
    assert_eq!((number(&answer, 6), closed), (WELCOME, false));

    scene.end(server, guest).unwrap();
}
