//! A guest and its server, from the first byte to the end of either.

mod crowd;
mod fake;
mod front_end;

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use ringfort_filesystem::errno::Errno;
use ringfort_protocol::command::{Command, Flags, Opcode};
use ringfort_protocol::control::message::{Echo, Memory as MemoryMessage, Message, Reason, Role};
use ringfort_protocol::version::Version;

use self::fake::*;
use super::Limits;

fn status(errno: Errno) -> u32 {
    errno.raw().unsigned_abs()
}

#[test]
fn a_daemon_with_the_secret_of_this_boot_is_served_in_pages_of_any_order() {
    with_guest(Limits::default(), |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut client = scene.client(&mut daemon, 1, &[9 * HUGE, HUGE, 3 * HUGE], HUGE_SHIFT);
        let file = client.create("/file");
        client.write(file, 0, b"from a guest");
        assert_eq!(client.read(file, 64), b"from a guest");
        // Each waits, so that both sleep now and then.
        for _ in 0..300 {
            let nop = client.command(Opcode::Nop);
            assert_eq!(client.call(nop).status, 0);
        }
        assert_eq!(daemon.outcome(&detach(1)), None);
        assert!(client.is_hung_up_on());
        // What was given back can be shared anew, small pages too.
        let pages: Vec<u64> =
            [12 * HUGE].into_iter().chain((256..512).rev().map(|page| page * 2 * SMALL)).collect();
        let mut small = scene.client(&mut daemon, 1, &pages, SMALL_SHIFT);
        let file = small.create("/file");
        assert_eq!(small.read(file, 64), b"from a guest");
    });
}

#[test]
fn whoever_does_not_know_the_secret_of_this_boot_is_refused() {
    with_guest(Limits::default(), |scene| {
        let daemon = Role::GuestDaemon.number();
        let refused = |role, secret| scene.hello(role, secret).map(drop).unwrap_err();
        assert_eq!(refused(daemon, SECOND_BOOT), Reason::NotAllowed);
        assert_eq!(refused(daemon, [0; 16]), Reason::NotAllowed);
        assert_eq!(refused(Role::Process.number(), FIRST_BOOT), Reason::NotAllowed);
        assert_eq!(refused(Role::Doorbell.number(), FIRST_BOOT), Reason::NotAllowed);
        assert_eq!(refused(77, FIRST_BOOT), Reason::Message);
        scene.machine.begin_boot(SECOND_BOOT);
        assert_eq!(refused(daemon, FIRST_BOOT), Reason::NotAllowed);
        scene.machine.disconnect();
        assert_eq!(refused(daemon, SECOND_BOOT), Reason::NotAllowed);
        assert_eq!(refused(daemon, [0; 16]), Reason::NotAllowed);
        for first in [prove(1, 1), pages(1, &[HUGE], HUGE_SHIFT), Message::Ping(Echo::default())] {
            let mut wire = scene.connect();
            assert_eq!(reason(&wire.ask(&first)), Reason::Message);
            assert!(wire.next().is_none());
        }
    });
}

#[test]
fn a_daemon_of_the_same_boot_is_kept_out_and_one_of_a_later_boot_takes_over() {
    with_guest(Limits::default(), |scene| {
        let mut first = scene.daemon(FIRST_BOOT);
        let mut client = scene.client(&mut first, 1, &[HUGE], HUGE_SHIFT);
        let file = client.create("/file");
        let lock = client.lock(file, 1, Flags::default());
        assert_eq!(client.call(lock).status, 0);
        let refused = scene.hello(Role::GuestDaemon.number(), FIRST_BOOT).map(drop);
        assert_eq!(refused, Err(Reason::Busy));
        assert_eq!(first.ask(&Message::Ping(Echo::default())), Message::Pong(Echo::default()));
        // The guest boots anew: its pages, its port and its locks are free when the next daemon is welcome.
        scene.machine.begin_boot(SECOND_BOOT);
        let mut second = scene.daemon(SECOND_BOOT);
        assert!(first.next().is_none());
        assert!(client.is_hung_up_on());
        let mut client = scene.client(&mut second, 1, &[HUGE], HUGE_SHIFT);
        let file = client.create("/file");
        let lock = client.lock(file, 1, Flags::default());
        assert_eq!(client.call(lock).status, 0);
    });
}

#[test]
fn pages_are_taken_whole_once_and_from_the_machine_s_memory_alone() {
    let limits = Limits { memory_bytes_max: 4 * HUGE as u32, region_count_max: 2, ..Limits::default() };
    with_guest(limits, |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        assert_eq!(daemon.outcome(&pages(1, &[HUGE], HUGE_SHIFT)), None);
        for (what, message, expected) in [
            ("the same again", pages(1, &[HUGE], HUGE_SHIFT), Reason::Exists),
            ("another size", pages(1, &[2 * HUGE], SMALL_SHIFT), Reason::Exists),
            ("in another region", pages(2, &[HUGE], HUGE_SHIFT), Reason::PageTaken),
            ("part of it", pages(2, &[HUGE + SMALL], SMALL_SHIFT), Reason::PageTaken),
            ("twice", pages(2, &[2 * HUGE, 3 * HUGE, 2 * HUGE], HUGE_SHIFT), Reason::PageTaken),
            ("in the hole", pages(2, &[2 * HUGE, 5 * HUGE], HUGE_SHIFT), Reason::PageOutside),
            ("across the end", pages(2, &[12 * HUGE], HUGE_SHIFT), Reason::PageOutside),
            ("behind the end", pages(2, &[12 * HUGE + SMALL], SMALL_SHIFT), Reason::PageOutside),
            ("at the end of all numbers", pages(2, &[!(HUGE - 1)], HUGE_SHIFT), Reason::PageOutside),
            ("not at its size", pages(2, &[2 * HUGE + SMALL], HUGE_SHIFT), Reason::PageUnaligned),
            ("at an odd byte", pages(2, &[2 * HUGE + 1], SMALL_SHIFT), Reason::PageUnaligned),
            ("no size of pages", pages(2, &[2 * HUGE], 13), Reason::Message),
            ("a size that wraps", pages(2, &[2 * HUGE], 64), Reason::Message),
            ("more than it has", some_pages(2, 2, 1, &[2 * HUGE, 3 * HUGE], HUGE_SHIFT), Reason::Message),
            ("a place that wraps", some_pages(2, 1, u32::MAX, &[2 * HUGE], HUGE_SHIFT), Reason::Message),
            ("none", some_pages(2, 1, 0, &[], HUGE_SHIFT), Reason::Message),
            ("too many", some_pages(2, 4, 0, &[2 * HUGE], HUGE_SHIFT), Reason::Limit),
            ("far too many", some_pages(2, u32::MAX, 0, &[2 * HUGE], HUGE_SHIFT), Reason::Limit),
        ] {
            assert_eq!(daemon.outcome(&message), Some(expected), "{what}");
        }
        let descriptor = MemoryMessage { region: 2.into(), len_bytes: HUGE.into(), ..Default::default() };
        assert_eq!(daemon.outcome(&Message::Memory(descriptor)), Some(Reason::NotAllowed));
        // Nothing of what was refused is held, and what is left can still come, in pieces and out of order.
        assert_eq!(daemon.outcome(&some_pages(2, 2, 1, &[2 * HUGE], HUGE_SHIFT)), None);
        assert_eq!(reason(&daemon.ask(&prove(2, 1))), Reason::Message, "a page was not named");
        assert_eq!(daemon.outcome(&pages(3, &[12 * HUGE], SMALL_SHIFT)), Some(Reason::Limit), "regions");
        assert_eq!(daemon.outcome(&some_pages(2, 2, 0, &[3 * HUGE], HUGE_SHIFT)), None);
        let memory = scene.pages(&[3 * HUGE, 2 * HUGE], HUGE_SHIFT);
        assert_eq!(daemon.prove(2, &memory, HUGE), None);
    });
}

#[test]
fn nothing_is_written_into_pages_that_were_not_proved() {
    with_guest(Limits::default(), |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let addresses = [3 * HUGE, HUGE];
        assert_eq!(daemon.outcome(&pages(1, &addresses, HUGE_SHIFT)), None);
        assert_eq!(daemon.outcome(&attach(1, 0, [9; 16])), Some(Reason::Nonce));
        // The daemon believes that its pages are elsewhere.
        let elsewhere = scene.pages(&[3 * HUGE, 2 * HUGE], HUGE_SHIFT);
        assert_eq!(daemon.prove(1, &elsewhere, HUGE), Some(Reason::Nonce));
        let pages = scene.pages(&addresses, HUGE_SHIFT);
        let mut behind = [1; 16];
        for page in [0, HUGE] {
            pages.read(page + 16, &mut behind).unwrap();
            assert_eq!(behind, [0; 16], "not even where the nonce was right");
        }
        assert_eq!(daemon.outcome(&attach(1, 0, [9; 16])), Some(Reason::Nonce));
        assert_eq!(reason(&daemon.ask(&prove(2, 1))), Reason::Unknown);
        assert_eq!(daemon.prove(1, &pages, HUGE), None);
        assert_eq!(daemon.outcome(&attach(1, 0, [9; 16])), None);
        assert_eq!(daemon.outcome(&attach(1, 1, [9; 16])), Some(Reason::Exists), "the doorbell's secret");
        assert_eq!(reason(&daemon.ask(&prove(1, 1))), Reason::Message, "rings are in it");
    });
}

#[test]
fn a_doorbell_hangs_at_one_ring_and_a_ring_has_one() {
    with_guest(Limits::default(), |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let _client = scene.client(&mut daemon, 1, &[HUGE], HUGE_SHIFT);
        let again = scene.hello(Role::Doorbell.number(), [101; 16]).map(drop);
        assert_eq!(again, Err(Reason::NotAllowed), "it is there already");
        assert_eq!(daemon.outcome(&attach(1, 1, [7; 16])), None);
        assert_eq!(daemon.outcome(&detach(1)), None);
        let late = scene.hello(Role::Doorbell.number(), [7; 16]).map(drop);
        assert_eq!(late, Err(Reason::NotAllowed), "its ring has ended");
    });
}

#[test]
fn a_machine_that_has_stopped_is_not_written_into_and_rings_go_on_where_they_stood() {
    with_guest(Limits::default(), |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut client = scene.client(&mut daemon, 1, &[HUGE], HUGE_SHIFT);
        let file = client.create("/file");
        let input = client.input(&[7; 100_000]);
        let (mut submitted, mut completed) = (0u64, Vec::new());
        for round in 0..20 {
            // More than once around the ring, some of it under way when the machine stops.
            for _ in 0..=round {
                while client.room() > 0 {
                    let command = match submitted % 3 {
                        0 => Command { target: file, input, ..client.command(Opcode::Write) },
                        _ => client.command(Opcode::Nop),
                    };
                    client.submit(&command);
                    submitted += 1;
                }
                completed.extend(std::iter::from_fn(|| client.take()));
            }
            scene.machine.stop();
            let at_the_stop = client.bytes();
            std::thread::sleep(Duration::from_millis(5));
            assert!(client.bytes() == at_the_stop, "written into after the stop");
            if round % 2 == 0 {
                // It may be stopped once more, and its memory may lie elsewhere in this process.
                scene.machine.stop();
                scene.machine.replace_memory(scene.memory(&RANGES));
            }
            scene.machine.start();
            daemon.go_on(&client, 1);
        }
        while completed.len() < submitted as usize {
            completed.push(client.next());
        }
        assert!(completed.iter().all(|completion| completion.status == 0));
        let mut tags: Vec<u64> = completed.iter().map(|completion| completion.tag).collect();
        tags.sort_unstable();
        assert!(tags.windows(2).all(|pair| pair[0] + 1 == pair[1]), "each was answered once");
    });
}

#[test]
fn what_waits_for_a_lock_is_interrupted_when_the_machine_stops_chains_too() {
    with_guest(Limits::default(), |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut holder = scene.client(&mut daemon, 1, &[HUGE], HUGE_SHIFT);
        let mut waiter = scene.client(&mut daemon, 2, &[2 * HUGE], HUGE_SHIFT);
        let file = holder.create("/file");
        let lock = holder.lock(file, 1, Flags::default());
        assert_eq!(holder.call(lock).status, 0);
        let file = waiter.create("/file");
        // The second begins to wait only after the stop has ended the first's waiting.
        let chain = [waiter.lock(file, 2, Flags::LINK_ALWAYS), waiter.lock(file, 3, Flags::default())];
        chain.iter().for_each(|command| waiter.submit(command));
        let nop = waiter.command(Opcode::Nop);
        waiter.submit(&nop);
        assert_eq!(waiter.next().tag, nop.tag, "the chain was begun");
        scene.machine.stop();
        let interrupted = [waiter.take().unwrap(), waiter.take().unwrap()];
        assert_eq!(interrupted.map(|completion| completion.status), [status(Errno::EINTR); 2]);
        scene.machine.start();
        for _ in 0..2 {
            assert!(matches!(daemon.next(), Some(Message::Suspended(_))));
        }
        assert_eq!(daemon.prove(1, &holder.memory, HUGE), None);
        assert_eq!(daemon.prove(2, &waiter.memory, HUGE), None);
        // The lock outlived the stop.
        let again = waiter.lock(file, 2, Flags::default());
        waiter.submit(&again);
        let close = Command { target: file, ..holder.command(Opcode::Close) };
        assert_eq!(holder.call(close).status, 0);
        assert_eq!(waiter.next().status, 0);
    });
}

#[test]
fn regions_that_a_changed_memory_table_does_not_hold_end_and_others_go_on() {
    with_guest(Limits::default(), |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut stays = scene.client(&mut daemon, 1, &[HUGE], HUGE_SHIFT);
        let goes = scene.client(&mut daemon, 2, &[8 * HUGE], HUGE_SHIFT);
        scene.machine.replace_memory(scene.memory(&RANGES[..1]));
        for _ in 0..2 {
            assert!(matches!(daemon.next(), Some(Message::Suspended(_))));
        }
        assert_eq!(daemon.prove(2, &goes.memory, HUGE), Some(Reason::MemoryChanged));
        assert!(goes.is_hung_up_on());
        assert_eq!(daemon.prove(2, &goes.memory, HUGE), Some(Reason::Unknown), "it has ended");
        assert_eq!(daemon.prove(1, &stays.memory, HUGE), None);
        let nop = stays.command(Opcode::Nop);
        assert_eq!(stays.call(nop).status, 0);
        assert_eq!(daemon.outcome(&pages(2, &[8 * HUGE], HUGE_SHIFT)), Some(Reason::PageOutside));
    });
}

#[test]
fn a_region_of_small_pages_ends_when_the_machine_stops() {
    with_guest(Limits::default(), |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let pages: Vec<u64> = (2 * HUGE..3 * HUGE).step_by(SMALL as usize).collect();
        let client = scene.client(&mut daemon, 1, &pages, SMALL_SHIFT);
        scene.machine.stop();
        assert!(client.is_hung_up_on());
        // Whatever the server has to say is kept back while the machine stands still: what carries it may not run.
        daemon.say(&prove(1, 1));
        daemon.say(&fake::pages(1, &[2 * HUGE], HUGE_SHIFT));
        std::thread::sleep(Duration::from_millis(50));
        daemon.0.set_nonblocking(true).unwrap();
        assert!(matches!(daemon.0.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock));
        daemon.0.set_nonblocking(false).unwrap();
        scene.machine.start();
        assert_eq!(reason(&daemon.next().unwrap()), Reason::MemoryChanged);
        assert_eq!(reason(&daemon.next().unwrap()), Reason::Unknown, "it has ended");
        assert_eq!(reason(&daemon.next().unwrap()), Reason::MachineGone, "not while it stands still");
        let mut client = scene.client(&mut daemon, 1, &pages, SMALL_SHIFT);
        let nop = client.command(Opcode::Nop);
        assert_eq!(client.call(nop).status, 0);
    });
}

#[test]
fn a_machine_that_goes_takes_its_channel_along() {
    with_guest(Limits::default(), |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut client = scene.client(&mut daemon, 1, &[HUGE], HUGE_SHIFT);
        client.create("/file");
        scene.machine.disconnect();
        let at_the_end = client.bytes();
        assert_eq!(reason(&daemon.next().unwrap()), Reason::MachineGone);
        assert!(daemon.next().is_none());
        assert!(client.is_hung_up_on());
        assert!(client.bytes() == at_the_end);
    });
}

#[test]
fn what_a_daemon_held_is_given_up_when_it_dies_at_whatever_point() {
    with_guest(Limits::default(), |scene| {
        for point in 0..6 {
            let mut daemon = match scene.hello(Role::GuestDaemon.number(), FIRST_BOOT) {
                Ok((daemon, _)) => daemon,
                // The end of the one before is not heard of yet.
                Err(Reason::Busy) => {
                    let deadline = Instant::now() + Duration::from_secs(10);
                    loop {
                        match scene.hello(Role::GuestDaemon.number(), FIRST_BOOT) {
                            Ok((daemon, _)) => break daemon,
                            Err(reason) => assert!(
                                reason == Reason::Busy && Instant::now() < deadline,
                                "point {point}: {reason:?}"
                            ),
                        }
                    }
                }
                Err(reason) => panic!("point {point}: {reason:?}"),
            };
            match point {
                0 => {}
                1 => assert_eq!(daemon.outcome(&pages(1, &[HUGE], HUGE_SHIFT)), None),
                2 => {
                    let bytes = pages(1, &[HUGE], HUGE_SHIFT).encode(Version::CHANNEL);
                    daemon.0.write_all(&bytes[..bytes.len() - 3]).unwrap();
                }
                3 => {
                    assert_eq!(daemon.outcome(&pages(1, &[HUGE], HUGE_SHIFT)), None);
                    assert_eq!(daemon.prove(1, &scene.pages(&[HUGE], HUGE_SHIFT), HUGE), None);
                    assert_eq!(daemon.outcome(&attach(1, 0, [9; 16])), None);
                }
                _ => {
                    let mut client = scene.client(&mut daemon, 1, &[HUGE], HUGE_SHIFT);
                    let file = client.create("/file");
                    // Held by the one before, who is dead.
                    let lock = client.lock(file, 1, Flags::default());
                    assert_eq!(client.call(lock).status, 0);
                    let waits = client.lock(file, 2, Flags::default());
                    client.submit(&waits);
                }
            }
        }
    });
}

#[test]
fn strangers_who_say_nothing_keep_nobody_out() {
    with_guest(Limits { hello_ms_max: 300, ..Limits::default() }, |scene| {
        let mut strangers: Vec<Wire> = (0..100).map(|_| scene.connect()).collect();
        for stranger in strangers.iter_mut().step_by(3) {
            // Some have begun to say something, where they were not hung up on already.
            let _ = stranger.0.write_all(b"RF");
        }
        let mut daemon = scene.daemon(FIRST_BOOT);
        assert_eq!(daemon.ask(&Message::Ping(Echo::default())), Message::Pong(Echo::default()));
        assert!(strangers.iter_mut().all(|stranger| stranger.next().is_none()), "they are hung up on");
    });
}

#[test]
fn what_is_no_message_ends_the_connection_and_a_body_that_is_none_is_refused() {
    with_guest(Limits::default(), |scene| {
        let mut wire = scene.connect();
        wire.0.write_all(&[0x5a; 64]).unwrap();
        assert!(wire.next().is_none());
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut bytes = detach(1).encode(Version::CHANNEL);
        *bytes.last_mut().unwrap() = 1;
        daemon.0.write_all(&bytes).unwrap();
        assert!(matches!(daemon.next(), Some(Message::Refused(..))), "a length that lies");
        assert_eq!(daemon.outcome(&hello_again()), Some(Reason::Message), "a greeting is for the begin");
        assert_eq!(daemon.outcome(&pages(1, &[HUGE], HUGE_SHIFT)), None, "and it goes on");
        daemon.0.write_all(&[0x5a; 64]).unwrap();
        assert!(daemon.next().is_none());
    });
}

fn hello_again() -> Message {
    fake::hello(Role::GuestDaemon.number(), FIRST_BOOT)
}

#[test]
fn whoever_greets_a_machine_that_stands_still_is_answered_when_it_runs() {
    with_guest(Limits { hello_ms_max: 200, ..Limits::default() }, |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let client = scene.client(&mut daemon, 1, &[HUGE], HUGE_SHIFT);
        assert_eq!(daemon.outcome(&attach(1, 1, [7; 16])), None);
        let (mut bell, mut wrong, mut silent) = (scene.connect(), scene.connect(), scene.connect());
        scene.machine.stop();
        bell.say(&fake::hello(Role::Doorbell.number(), [7; 16]));
        wrong.say(&fake::hello(Role::Doorbell.number(), [8; 16]));
        std::thread::sleep(Duration::from_millis(400));
        for wire in [&mut bell, &mut wrong, &mut silent] {
            wire.0.set_nonblocking(true).unwrap();
            let found = wire.0.read(&mut [0]);
            assert!(found.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "not even the end");
            wire.0.set_nonblocking(false).unwrap();
        }
        scene.machine.start();
        assert!(matches!(bell.next(), Some(Message::Welcome(_))));
        assert_eq!(reason(&wrong.next().unwrap()), Reason::NotAllowed);
        assert!(wrong.next().is_none() && silent.next().is_none());
        daemon.go_on(&client, 1);
    });
}

#[test]
fn a_machine_that_stands_still_is_not_taken_for_a_dead_one() {
    with_guest(Limits { silence_ms_max: 1000, ..Limits::default() }, |scene| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let client = scene.client(&mut daemon, 1, &[HUGE], HUGE_SHIFT);
        scene.machine.stop();
        std::thread::sleep(Duration::from_millis(2500));
        scene.machine.start();
        daemon.go_on(&client, 1);
        // One that runs and says nothing is.
        while daemon.hear().is_some() {}
    });
}
