//! What a guest gets for breaking the rules.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::driver::{Descriptor, INDIRECT, NEXT, WRITE, name};
use super::guest::{Guest, MEMORY_BYTES, QUEUE_SIZE, REQUESTS, with_guest, with_options};
use crate::virtiofs::abi;
use crate::virtiofs::device::{Event, Options};

const EINVAL: i32 = -22;

#[test]
fn requests_that_programs_may_cause_get_an_errno_and_are_no_fault_of_the_guest() {
    with_guest(|mut guest, _fake| async move {
        guest.init().await;
        let seek_before_the_start =
            [vec![0; 8], u64::MAX.to_le_bytes().to_vec(), vec![3, 0, 0, 0, 0, 0, 0, 0]].concat();
        let cases: &[(u32, Vec<u8>, i32)] = &[
            // Open for neither reading nor writing, as Linux allows.
            (abi::FUSE_OPEN, vec![3, 0, 0, 0, 0, 0, 0, 0], 0),
            (abi::FUSE_LOOKUP, name(&"x".repeat(256)), -36),
            (abi::FUSE_LSEEK, seek_before_the_start, -6),
            (63, vec![], -38),
        ];
        for (opcode, body, error) in cases {
            let ticket = guest.send(*opcode, 1, body);
            assert_eq!(guest.wait(&ticket).await.error, *error, "opcode {opcode}");
        }
        assert_eq!(guest.metrics.malformed_requests.get(), 0);
    });
}

#[test]
fn malformed_requests_get_an_errno_and_are_counted() {
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        fake.add_file("file", b"");
        let cases: &[(u32, Vec<u8>, i32)] = &[
            (abi::FUSE_LOOKUP, name("a/b"), EINVAL),
            (abi::FUSE_LOOKUP, name(""), EINVAL),
            (abi::FUSE_LOOKUP, name("."), EINVAL),
            (abi::FUSE_LOOKUP, b"no nul".to_vec(), EINVAL),
            (abi::FUSE_LOOKUP, b"two\0names\0".to_vec(), EINVAL),
            (abi::FUSE_GETATTR, vec![0; 15], EINVAL),
            (abi::FUSE_GETATTR, vec![0; 17], EINVAL),
            (abi::FUSE_READ, vec![0xff; 40], EINVAL),
            (abi::FUSE_WRITE, vec![0; 39], EINVAL),
            (abi::FUSE_WRITE, vec![0; 41], EINVAL),
            (abi::FUSE_BATCH_FORGET, vec![0xff; 8], 0),
            (abi::FUSE_SETXATTR, [vec![9, 0, 0, 0, 0, 0, 0, 0], name("user.a")].concat(), EINVAL),
            (
                abi::FUSE_RENAME2,
                [vec![0; 8], vec![7, 0, 0, 0, 0, 0, 0, 0], name("a"), name("b")].concat(),
                EINVAL,
            ),
            (abi::FUSE_FALLOCATE, vec![0xff; 32], EINVAL),
            (abi::FUSE_LSEEK, vec![0; 24], EINVAL),
            (abi::FUSE_MKNOD, [vec![0xff; 16], name("a")].concat(), EINVAL),
            (abi::FUSE_INIT, vec![7; 15], EINVAL),
        ];
        for (opcode, body, error) in cases {
            let before = guest.metrics.malformed_requests.get();
            let ticket = guest.send(*opcode, 1, body);
            if *error == 0 {
                assert_eq!(guest.returned(REQUESTS, &ticket).await, Some(0));
            } else {
                assert_eq!(guest.wait(&ticket).await.error, *error, "opcode {opcode} with {body:?}");
            }
            assert_eq!(guest.metrics.malformed_requests.get(), before + 1, "opcode {opcode}");
        }
        assert_eq!(guest.metrics.broken_devices.get(), 0);
        guest.call(abi::FUSE_LOOKUP, 1, &name("file")).await.ok();
    });
}

#[test]
fn lengths_in_the_header_are_not_believed() {
    with_guest(|mut guest, _| async move {
        guest.init().await;
        for len in [0_u32, 39, 40, 41 + 8, u32::MAX] {
            let mut request = guest.queues[REQUESTS].request(abi::FUSE_LOOKUP, 1, &name("abcdefg"));
            request[..4].copy_from_slice(&len.to_le_bytes());
            let ticket = guest.queues[REQUESTS].submit(&[&request], &[16, 128]);
            guest.kick(REQUESTS);
            assert_eq!(guest.wait(&ticket).await.error, EINVAL, "length {len}");
        }
    });
}

#[test]
fn unknown_opcodes_and_forged_identifiers_get_errors() {
    with_guest(|mut guest, _| async move {
        guest.init().await;
        for opcode in [0, 7, 19, 37, 39, 40, 63, 64, 4096, u32::MAX] {
            assert_eq!(guest.call(opcode, 1, &[0; 64]).await.error, -38, "opcode {opcode}");
        }
        assert!(guest.metrics.requests(0) >= 3);
        assert_eq!(guest.call(abi::FUSE_LOOKUP, u64::MAX, &name("file")).await.error, -116);
        let read = abi::ReadIn { fh: 77.into(), size: 1.into(), ..Default::default() };
        assert_eq!(guest.call(abi::FUSE_READ, 1, read.as_bytes()).await.error, -9);
    });
}

#[test]
fn a_reply_without_room_has_no_effect() {
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        let node = fake.add_file("file", b"");
        let ticket = guest.send_with_room(abi::FUSE_LOOKUP, 1, &name("file"), &[16, 127]);
        assert_eq!(guest.wait(&ticket).await.error, EINVAL);
        assert_eq!(fake.state.borrow().lookups.get(&node), None);
        // Not even room to say so.
        let ticket = guest.send_with_room(abi::FUSE_LOOKUP, 1, &name("file"), &[15]);
        assert_eq!(guest.returned(REQUESTS, &ticket).await, Some(0));
        let ticket = guest.send_with_room(abi::FUSE_READLINK, node, &[], &[16, 99]);
        assert_eq!(guest.wait(&ticket).await.error, EINVAL);
        assert_eq!(guest.metrics.broken_devices.get(), 0);
    });
}

#[test]
fn requests_before_init_are_refused() {
    with_guest(|mut guest, _| async move {
        assert_eq!(guest.call(abi::FUSE_STATFS, 1, &[]).await.error, -5);
        guest.forget(1, 1).await;
    });
}

/// Offers a chain of these descriptors, and expects that the device stops serving until a reset.
async fn expect_broken(guest: &mut Guest, descriptors: &[Descriptor]) {
    for (index, descriptor) in descriptors.iter().enumerate() {
        guest.queues[REQUESTS].store(index as u16, *descriptor);
    }
    guest.queues[REQUESTS].offer(0);
    guest.kick(REQUESTS);
    guest.settle().await;
    assert_eq!(guest.metrics.broken_devices.get(), 1);
    assert_eq!(guest.queues[REQUESTS].take_used(), None);
    let ignored = guest.send(abi::FUSE_STATFS, 1, &[]);
    guest.settle().await;
    assert_eq!(guest.queues[REQUESTS].take_used(), None);
    // A reset stops every queue; then all is well again.
    guest.event(|done| Event::Stop(0, done)).await;
    guest.event(|done| Event::Stop(REQUESTS, done)).await;
    guest.kick(REQUESTS);
    assert_eq!(guest.wait(&ignored).await.error, 0);
}

fn broken_by(descriptors: Vec<Descriptor>) {
    with_guest(move |mut guest, _| async move {
        guest.init().await;
        expect_broken(&mut guest, &descriptors).await;
    });
}

const fn descriptor(address: u64, len_bytes: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { address, len_bytes, flags, next }
}

#[test]
fn a_loop_of_descriptors_breaks_the_device() {
    broken_by(vec![descriptor(0x10000, 8, NEXT, 1), descriptor(0x10000, 8, NEXT, 0)]);
}

#[test]
fn an_address_outside_memory_breaks_the_device() {
    broken_by(vec![descriptor(MEMORY_BYTES as u64 - 8, 40, NEXT, 1), descriptor(0x10000, 256, WRITE, 0)]);
}

#[test]
fn an_overflowing_address_breaks_the_device() {
    broken_by(vec![descriptor(u64::MAX - 3, 40, 0, 0)]);
}

#[test]
fn a_huge_descriptor_breaks_the_device() {
    broken_by(vec![descriptor(0x10000, 40, NEXT, 1), descriptor(0x10000, u32::MAX, WRITE, 0)]);
}

#[test]
fn a_readable_descriptor_after_a_writable_one_breaks_the_device() {
    broken_by(vec![descriptor(0x10000, 256, WRITE | NEXT, 1), descriptor(0x10000, 40, 0, 0)]);
}

#[test]
fn an_index_beyond_the_table_breaks_the_device() {
    broken_by(vec![descriptor(0x10000, 40, NEXT, QUEUE_SIZE)]);
}

#[test]
fn a_chain_without_room_for_a_header_breaks_the_device() {
    broken_by(vec![descriptor(0x10000, 39, NEXT, 1), descriptor(0x10000, 256, WRITE, 0)]);
}

#[test]
fn indirect_tables_inside_tables_or_outside_memory_break_the_device() {
    broken_by(vec![descriptor(MEMORY_BYTES as u64, 64, INDIRECT, 0)]);
    broken_by(vec![descriptor(0x10000, 17, INDIRECT, 0)]);
    with_guest(|mut guest, _| async move {
        guest.init().await;
        let table = 0x20000;
        let nested = guest.queues[0].memory.clone();
        nested.write_obj(0x30000_u64, GuestAddress(table)).unwrap();
        nested.write_obj(16_u32, GuestAddress(table + 8)).unwrap();
        nested.write_obj(INDIRECT, GuestAddress(table + 12)).unwrap();
        expect_broken(&mut guest, &[descriptor(table, 16, INDIRECT, 0)]).await;
    });
}

#[test]
fn an_available_index_that_runs_ahead_breaks_the_device() {
    with_guest(|mut guest, _| async move {
        guest.init().await;
        guest.queues[REQUESTS].set_available_index(u16::MAX / 2);
        guest.kick(REQUESTS);
        guest.settle().await;
        assert_eq!(guest.metrics.broken_devices.get(), 1);
    });
}

#[test]
fn a_guest_cannot_have_more_under_way_than_the_bounds_allow() {
    // The same head again and again: more chains than the ring has descriptors.
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        fake.hold.set(true);
        let ticket = guest.send(abi::FUSE_STATFS, 1, &[]);
        for round in 0..4 {
            for _ in 0..QUEUE_SIZE - 1 {
                guest.queues[REQUESTS].offer(ticket.head);
            }
            guest.kick(REQUESTS);
            guest.settle().await;
            assert!(fake.under_way_max.get() <= usize::from(QUEUE_SIZE), "round {round}");
            if guest.metrics.broken_devices.get() > 0 {
                break;
            }
        }
        fake.hold.set(false);
        guest.settle().await;
        assert_eq!(fake.under_way.get(), 0);
    });
    // And bytes: each request offers a megabyte of room.
    let options = Options { in_flight_bytes_max: 3 << 20, ..Default::default() };
    with_options(options, |mut guest, fake| async move {
        guest.init().await;
        fake.hold.set(true);
        let tickets: Vec<_> =
            (0..4).map(|_| guest.send_with_room(abi::FUSE_STATFS, 1, &[], &[1 << 20])).collect();
        guest.settle().await;
        assert_eq!(fake.under_way.get(), 3);
        fake.hold.set(false);
        for ticket in &tickets {
            assert_eq!(guest.wait(ticket).await.error, 0);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Random descriptors over random bytes: the device answers or breaks, and serves again after a reset.
    #[test]
    fn no_garbage_in_rings_hurts(
        descriptors in prop::collection::vec((0..0x40000_u64, 0..5000_u32, 0..8_u16, 0..20_u16), 16),
        heads in prop::collection::vec(0..20_u16, 1..16),
        bytes in prop::collection::vec(any::<u8>(), 4096),
        opcodes in prop::collection::vec(0..55_u32, 64),
    ) {
        with_guest(move |mut guest, _| async move {
            guest.init().await;
            let memory = guest.queues[0].memory.clone();
            for (at, opcode) in opcodes.iter().enumerate() {
                let start = 0x10000 + at as u64 * 4096;
                memory.write_slice(&bytes, GuestAddress(start)).unwrap();
                memory.write_obj(64_u32, GuestAddress(start)).unwrap();
                memory.write_obj(*opcode, GuestAddress(start + 4)).unwrap();
            }
            for (index, (address, len_bytes, flags, next)) in descriptors.iter().enumerate() {
                let address = 0x10000 + address / 4096 * 4096;
                guest.queues[REQUESTS].store(index as u16, descriptor(address, *len_bytes, *flags, *next));
            }
            for head in heads {
                guest.queues[REQUESTS].offer(head);
            }
            guest.kick(REQUESTS);
            guest.settle().await;
            guest.event(Event::Reset).await;
        });
    }
}
