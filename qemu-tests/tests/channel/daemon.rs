//! The daemon of a guest, and programs of the guest that use the volume through it.

use std::thread;
use std::time::{Duration, Instant};

use ringfort_qemu_tests::machine::Machine;
use ringfort_qemu_tests::scene::MOUNTED;
use serde_json::json;

use crate::stage::{Daemon, LONG, PAGES, SOON, Stage, failed_clearly};

#[test]
fn what_one_writes_through_the_channel_the_other_reads_through_virtio_fs() {
    let stage = Stage::new("channel-both");
    let daemon = Daemon::start(&stage.guest);
    let said = daemon.must(&format!(
        "head -c 3000003 /dev/urandom > /tmp/sent && rf mkdir /a && rf put /tmp/sent /a/one &&
         cp {MOUNTED}/a/one {MOUNTED}/a/two && rf get /a/two /tmp/back &&
         sha256sum < /tmp/sent && sha256sum < {MOUNTED}/a/one && sha256sum < /tmp/back"
    ));
    let sums: Vec<&str> = said.lines().collect();
    assert!(sums.len() == 3 && sums[0] == sums[1] && sums[1] == sums[2], "{said}");
    // Names, sizes and removals, at once and both ways.
    daemon.must(&format!(
        "cd {MOUNTED}/a && echo 0 > one && for round in $(seq 20); do
             echo $round >> one && [ $(rf cat /a/one | tail -n 1) = $round ] &&
             rf mv /a/two /a/three && [ ! -e two -a -e three ] && mv three two && rf stat /a/two > /dev/null &&
             echo $round > /tmp/new && rf put /tmp/new /a/new && [ $(cat new) = $round ] && rf rm /a/new && [ ! -e new ] || exit 1
         done"
    ));
    println!("{}", daemon.must("rf bench --json --calls 2000"));
    daemon.require_all_taken_back();
    // The huge pages that it reserved go back to the guest with it.
    daemon.must(
        "killall ringfort-guestd && while pidof ringfort-guestd; do sleep 0.1; done; grep 'HugePages_Total: *0$' /proc/meminfo",
    );
    drop(daemon);
    stage.end();
}

/// What a tree holds, for comparison; directories have sizes of their own in each file system.
const DESCRIBE: &str = "find . | sort | while read name; do
    stat -c '%n %A %u:%g' $name; [ -h $name ] && readlink $name; [ -f $name ] && stat -c '%h %s' $name && sha256sum < $name; done; true";

#[test]
fn commands_leave_what_those_of_a_local_file_system_leave() {
    let stage = Stage::new("channel-model");
    let daemon = Daemon::start(&stage.guest);
    daemon.must("mkdir -p /tmp/tree/deep/deeper && cd /tmp/tree && for name in $(seq 30); do
                     head -c $((name * 3001)) /dev/urandom > $name; cp $name deep/deeper/$name.copy; done; ln -s deep link");
    // Each line is done in the volume by the one, in a tmpfs by the other.
    for (ours, theirs) in [
        ("mkdir /m", "mkdir -p /tmp/m"),
        ("mkdir -p /m/a/b", "mkdir -p a/b"),
        ("put /tmp/tree/30 /m/a/one", "cp /tmp/tree/30 a/one"),
        ("cp /m/a/one /m/a/two", "cp a/one a/two"),
        ("mv /m/a/two /m/a/b/three", "mv a/two a/b/three"),
        ("ln /m/a/one /m/a/hard", "ln a/one a/hard"),
        ("ln -s ../one /m/a/b/soft", "ln -s ../one a/b/soft"),
        ("put -r /tmp/tree /m", "cp -r /tmp/tree ."),
        ("cp -r /m/tree /m/again", "cp -r tree again"),
        ("rm -r /m/tree/deep", "rm -r tree/deep"),
        ("rm /m/tree/7 /m/again/8", "rm tree/7 again/8"),
        ("touch /m/empty", "touch empty"),
        ("chmod -R u=rwX,go=rX /m", "chmod -R u=rwX,go=rX ."),
        ("chmod 4711 /m/a/b/three", "chmod 4711 a/b/three"),
        ("chown 1000:3000 /m/a/one /m/again", "chown 1000:3000 a/one again"),
        ("chmod 640 /m/a/one", "chmod 640 a/one"),
        ("mkdir /m/gone", "mkdir gone"),
        ("rm -d /m/gone", "rmdir gone"),
        ("sync", "sync"),
    ] {
        daemon.must(&format!("rf {ours} && mkdir -p /tmp/m && cd /tmp/m && {theirs}"));
    }
    let model = daemon.must(&format!("cd /tmp/m; {DESCRIBE}"));
    assert_eq!(daemon.must(&format!("cd {MOUNTED}/m; {DESCRIBE}")), model);
    assert_eq!(daemon.must("rf ls /m/again"), daemon.must("ls -A /tmp/m/again"));
    assert_eq!(
        daemon.must("rf cat /m/a/one /m/tree/9 | sha256sum"),
        daemon.must("cd /tmp/m; cat a/one tree/9 | sha256sum")
    );
    let back = daemon.must(&format!("rf get -rp /m /tmp/got && cd /tmp/got && {DESCRIBE}"));
    // Hard links are files of their own in a copy.
    assert_eq!(back.replace("\n1 ", "\n2 "), model.replace("\n1 ", "\n2 "));
    for refused in
        ["rm /m", "mkdir /m", "cat /m/none", "rm -d /m", "mv -n /m/empty /m/a/one", "ln /m/empty /m/a/one"]
    {
        daemon.must_not(&format!("rf {refused}"));
    }
    let stat: serde_json::Value = serde_json::from_str(&daemon.must("rf stat --json /m/a/one")).unwrap();
    assert!(stat.to_string().contains("90030"), "{stat}");
    daemon.must("rf df && rf df --json && rf ls -l /m/a");
    drop(daemon);
    stage.end();
}

#[test]
fn small_pages_are_shared_on_request() {
    let stage = Stage::new("channel-small");
    let daemon =
        Daemon::start_with(&stage.guest, "--small-pages --memory-max-mib 16 --user-memory-max-mib 8");
    daemon.must(
        "head -c 3000003 /dev/urandom > /tmp/sent && rf put /tmp/sent /one && rf get /one /tmp/back && cmp /tmp/sent /tmp/back &&
         grep 'HugePages_Total: *0$' /proc/meminfo",
    );
    // They have no heads to be proved in while they are used: clients begin anew.
    let client = daemon.work(LONG);
    let mut monitor = stage.guest.monitor().unwrap();
    monitor.run("stop", json!({})).unwrap();
    monitor.run("cont", json!({})).unwrap();
    println!("{}", failed_clearly(client));
    daemon.must(&format!("rf get /one /tmp/again && cmp /tmp/sent /tmp/again; ls {PAGES}"));
    drop(daemon);
    stage.end();
}

#[test]
fn each_user_of_a_guest_may_what_their_permissions_say() {
    let stage = Stage::new("channel-users");
    let daemon = Daemon::start(&stage.guest);
    daemon.must(
        "echo helpers:x:3000:tests >> /etc/group && echo secret > /tmp/secret && chmod 600 /tmp/secret &&
         rf put -p /tmp/secret /secret && rf put /tmp/secret /shared && rf chmod 640 /shared && rf chown 0:3000 /shared &&
         rf mkdir /home && rf chown 1000:1000 /home && rf chmod 755 /home && echo text > /tmp/text && chmod 644 /tmp/text",
    );
    let as_tests = |what: &str| format!("su tests -c '{what}'");
    let as_nobody = |what: &str| format!("su nobody -c '{what}'");
    daemon.must(&as_tests("rf put /tmp/text /home/own && rf chmod 600 /home/own && rf cat /home/own"));
    let owner = daemon.must(&format!("stat -c %u:%g:%a {MOUNTED}/home/own"));
    assert_eq!(owner.trim(), "1000:1000:600");
    // Root may all, and a group is one that the user was in when it connected.
    assert_eq!(daemon.must("rf cat /home/own"), "text\n");
    assert_eq!(daemon.must(&as_tests("rf cat /shared")), "secret\n");
    for refused in [
        as_tests("rf cat /secret"),
        as_tests("rf put /tmp/text /elsewhere"),
        as_tests("rf chown 0:0 /home/own"),
        as_tests("rf rm /secret"),
        as_nobody("rf cat /home/own"),
        as_nobody("rf cat /shared"),
        as_nobody("rf put /tmp/text /home/other"),
        as_nobody("rf mv /home/own /home/taken"),
    ] {
        let said = daemon.must_not(&refused);
        assert!(said.contains("Permission denied") || said.contains("not permitted"), "{refused}: {said}");
    }
    assert_eq!(daemon.must(&as_tests("rf cat /home/own")), "text\n");

    // The daemon is for root, and one serves at a time.
    let refused = daemon.must_not(&as_tests("ringfort-guestd --socket /tmp/own.sock"));
    assert!(refused.contains("root"), "{refused}");
    let refused = daemon.must_not("ringfort-guestd");
    assert!(refused.contains("another ringfort-guestd"), "{refused}");
    // A second one elsewhere is refused by the server, and its clients by it.
    let second = "ringfort-guestd --socket /tmp/second.sock --pages /tmp/second >> /tmp/second.log 2>&1";
    let second = stage.guest.start(&["/bin/sh", "-c", second]).unwrap();
    daemon.must("until grep -q 'another daemon speaks for this machine' /tmp/second.log; do sleep 0.1; done");
    daemon.must_not("rf --connect unix:/tmp/second.sock ls");
    daemon.must("rf ls");
    second.kill().unwrap();
    drop(second);
    daemon.require_all_taken_back();
    drop(daemon);
    stage.end();
}

#[test]
fn what_clients_held_who_were_killed_is_taken_back() {
    let stage = Stage::new("channel-killed");
    let daemon = Daemon::start(&stage.guest);
    for _ in 0..3 {
        let client = daemon.work(LONG);
        client.kill().unwrap();
        client.finish(SOON).unwrap();
        daemon.require_all_taken_back();
    }
    // Pages that are taken out of the file are missed by their own client.
    let client = daemon.work(LONG);
    daemon.must(&format!("truncate -s 0 {PAGES}/$(ls {PAGES})"));
    daemon.must("rf ls");
    let outcome = client.finish(SOON).unwrap();
    assert!(outcome.status != 0, "{outcome:?}");
    daemon.require_all_taken_back();
    // At any point, connecting included, while others go on.
    let other = daemon.work(20_000);
    daemon.must(
        "for round in $(seq 40); do
             rf bench --calls 20000 > /dev/null 2>&1 & sleep 0.0$((round % 10))$((round % 7)); kill -9 $!; wait $!
         done 2> /dev/null; true",
    );
    other.finish(SOON).unwrap().success().unwrap();
    daemon.require_all_taken_back();
    // Locks and open files of theirs are gone, too: whoever was unlinked is.
    daemon.must(&format!("rm -f {MOUNTED}/.rf-bench-*; rf ls"));
    drop(daemon);
    stage.end();
}

#[test]
fn memory_that_a_program_keeps_when_it_has_hung_up_counts_against_its_user() {
    let stage = Stage::new("channel-kept");
    // Every `rf` takes two huge pages, so that two of them at once are too many.
    let daemon = Daemon::start_with(&stage.guest, "--user-memory-max-mib 6");
    let as_tests = |command: &str| format!("su tests -c '{command}'");
    daemon.must(&format!("chmod 777 {MOUNTED}"));
    daemon.must(&as_tests("rf ls"));
    daemon.require_all_taken_back();
    let client =
        stage.guest.start(&["/bin/sh", "-c", &as_tests("sleep 1000 | rf put - /never-ends")]).unwrap();
    // Whoever holds on to the memory of a program that is gone: here root does, with the file opened again.
    let keeper = format!(
        "while [ -z \"$(ls {PAGES})\" ]; do sleep 0.1; done; sleep 1;
         for file in {PAGES}/*; do sleep 1000 9<> $file & done; echo kept; wait"
    );
    let mut keeper = stage.guest.start(&["/bin/sh", "-c", &keeper]).unwrap();
    keeper.wait_until(|said| said.contains('\n'), SOON).unwrap();
    assert_eq!(keeper.stdout(), "kept\n");
    daemon.must("killall rf; while pidof rf; do sleep 0.1; done");
    let refused = daemon.must_not(&as_tests("rf ls"));
    assert!(refused.contains("--user-memory-max-mib"), "{refused}");
    daemon.must("rf ls");
    daemon.must("killall sleep");
    client.finish(SOON).unwrap();
    keeper.kill().unwrap();
    daemon.must(&format!(
        "for wait in $(seq 50); do {} > /dev/null 2>&1 && exit 0; sleep 0.1; done; exit 1",
        as_tests("rf ls")
    ));
    daemon.require_all_taken_back();
    drop((daemon, keeper));
    stage.end();
}

#[test]
fn a_daemon_that_was_killed_is_followed_by_another() {
    let stage = Stage::new("channel-daemon");
    let mut daemon = Daemon::start(&stage.guest);
    daemon.must("echo before > /tmp/text && rf put /tmp/text /before");
    for _ in 0..2 {
        let client = daemon.work(LONG);
        daemon.kill();
        println!("{}", failed_clearly(client));
        let refused = stage.guest.shell("rf ls").unwrap();
        assert!(refused.status == 2 && refused.stderr.contains("ringfort-guestd"), "{refused:?}");
        stage.guest.must(&format!("[ -n \"$(ls {PAGES})\" ]")).unwrap();
        daemon = Daemon::start(&stage.guest);
        daemon.require_all_taken_back();
        assert_eq!(daemon.must("rf cat /before"), "before\n");
    }
    // Stopped in order, it leaves nothing behind.
    let client = daemon.work(LONG);
    daemon.must("killall ringfort-guestd");
    failed_clearly(client);
    daemon.must(&format!("while pidof ringfort-guestd; do sleep 0.1; done; [ -z \"$(ls {PAGES})\" ]"));
    drop(daemon);
    stage.end();
}

#[test]
fn clients_go_on_when_the_machine_was_stopped_and_goes_on() {
    let stage = Stage::new("channel-stopped");
    let daemon = Daemon::start(&stage.guest);
    let mut monitor = stage.guest.monitor().unwrap();
    let client = daemon.work(60_000);
    for _ in 0..3 {
        monitor.run("stop", json!({})).unwrap();
        thread::sleep(Duration::from_millis(500));
        monitor.run("cont", json!({})).unwrap();
        thread::sleep(Duration::from_millis(300));
    }
    client.finish(SOON).unwrap().success().unwrap_or_else(|error| panic!("{error:#}\n{}", daemon.log()));
    let log = daemon.log();
    assert!(log.matches("proved again").count() >= 3, "{log}");
    // While a channel is there the machine is not migrated.
    let client = daemon.work(20_000);
    let refused = monitor.run("migrate", json!({ "uri": "exec:cat > /dev/null" })).unwrap_err().to_string();
    println!("{refused}");
    client.finish(SOON).unwrap().success().unwrap();
    daemon.require_all_taken_back();
    drop(daemon);
    stage.end();
}

#[test]
fn a_guest_that_restarts_under_load_has_its_channel_again() {
    let mut stage = Stage::with("channel-restart", Machine::restarts);
    for round in 0..3 {
        let daemon = Daemon::start(&stage.guest);
        daemon.must(&format!(
            "echo {round} > /tmp/text && rf put /tmp/text /round-{round} && rf cat /round-{round}"
        ));
        let _client = daemon.work(LONG);
        let _other = daemon.work(LONG);
        stage.guest.restart().unwrap();
        stage.guest.mount("volume").unwrap();
    }
    let daemon = Daemon::start(&stage.guest);
    assert_eq!(
        daemon.must("cat /mnt/volume/round-*; rf cat /round-0 /round-1 /round-2"),
        "0\n1\n2\n".repeat(2)
    );
    daemon.require_all_taken_back();
    drop(daemon);
    stage.end();
}

#[test]
fn clients_hear_of_the_end_of_the_server() {
    let Stage { scene, server, guest } = Stage::new("channel-server");
    let daemon = Daemon::start(&guest);
    daemon.must("echo before > /tmp/text && rf put /tmp/text /before");
    let client = daemon.work(LONG);
    server.kill().unwrap();
    let began = Instant::now();
    println!("{}", failed_clearly(client));
    println!("told after {:?}", began.elapsed());
    let refused = daemon.must_not("rf ls");
    assert!(refused.contains("server"), "{refused}");
    drop(daemon);
    guest.pull_the_plug();
    // Nothing that was acknowledged is lost.
    let stage_again = scene.serve_and_boot().unwrap();
    assert_eq!(stage_again.1.must(&format!("cat {MOUNTED}/before")).unwrap(), "before\n");
    scene.end(stage_again.0, stage_again.1).unwrap();
}
