//! Two guests at once on one volume: what one has closed, the other opens.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::thread;
use std::time::Duration;

use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};

const TIMEOUT: Duration = Duration::from_secs(200);

/// Longer than a guest believes names under `--cache auto`.
const NAMES_EXPIRED: Duration = Duration::from_millis(1500);

#[test]
fn without_a_cache_two_guests_pass_files_to_and_fro() {
    pass_to_and_fro("never", Duration::ZERO);
}

#[test]
fn under_cache_auto_two_guests_pass_files_to_and_fro() {
    pass_to_and_fro("auto", NAMES_EXPIRED);
}

/// What was written and closed is there when the other opens; names that changed are believed after `names_expire`.
fn pass_to_and_fro(cache: &str, names_expire: Duration) {
    let scene = Scene::new("between", "1GiB").unwrap();
    let mut server = scene.serve_with(2, &["--cache", cache]).unwrap();
    let (one, two) = (scene.guest(0).unwrap(), scene.guest(1).unwrap());
    // Both have opened and read the letter, so that both may have it cached.
    one.must(&format!("cd {MOUNTED} && echo first > letter && echo x > victim && mkdir inbox")).unwrap();
    two.must(&format!("cd {MOUNTED} && cat letter victim && ls inbox")).unwrap();
    for (round, (writer, reader)) in
        [(&one, &two), (&two, &one), (&one, &two), (&two, &one)].into_iter().enumerate()
    {
        // In place: same name, same length, other bytes; then longer, then shorter.
        for text in [format!("{round} of letters"), format!("{round}").repeat(9000), format!("{round}")] {
            writer.must(&format!("echo '{text}' > {MOUNTED}/letter")).unwrap();
            assert_eq!(reader.must(&format!("cat {MOUNTED}/letter")).unwrap(), format!("{text}\n"));
        }
        writer.must(&format!("echo more >> {MOUNTED}/letter")).unwrap();
        assert_eq!(reader.must(&format!("tail -n 1 {MOUNTED}/letter")).unwrap(), "more\n");

        let parcel = format!("{MOUNTED}/inbox/parcel-{round}");
        let seed = round.to_string();
        assert!(!reader.shell(&format!("test -e {parcel}")).unwrap().stdout.contains("parcel"));
        writer.run(&[AGENT, "tree-make", &parcel, &seed, "30"], TIMEOUT).unwrap();
        thread::sleep(names_expire);
        reader.run(&[AGENT, "tree-verify", &parcel, &seed, "30"], TIMEOUT).unwrap();

        // The reader changes names that the writer knows.
        let moved = format!("{MOUNTED}/inbox/moved-{round}");
        reader.must(&format!("mv {parcel} {moved} && rm {MOUNTED}/victim && sync")).unwrap();
        thread::sleep(names_expire);
        writer.must(&format!("! test -e {parcel} && ! test -e {MOUNTED}/victim")).unwrap();
        writer.run(&[AGENT, "tree-verify", &moved, &seed, "30"], TIMEOUT).unwrap();
        writer.must(&format!("rm -rf {moved} && echo back > {MOUNTED}/victim")).unwrap();
        thread::sleep(names_expire);
        assert_eq!(reader.must(&format!("ls {MOUNTED}/inbox; cat {MOUNTED}/victim")).unwrap(), "back\n");
    }

    // A file that one holds open while the other removes its name keeps its bytes for the holder.
    one.must(&format!("echo kept > {MOUNTED}/held")).unwrap();
    let script = format!(
        "exec 3< {MOUNTED}/held && echo opened && while test -e /tmp/held; do sleep 0.1; done; cat <&3"
    );
    one.must("touch /tmp/held").unwrap();
    let mut holder = one.start(&["/bin/sh", "-c", &script]).unwrap();
    holder.wait_until(|said| said.contains("opened"), TIMEOUT).unwrap();
    two.must(&format!("rm {MOUNTED}/held && echo another > {MOUNTED}/held")).unwrap();
    one.must("rm /tmp/held").unwrap();
    assert_eq!(holder.finish(TIMEOUT).unwrap().success().unwrap(), "opened\nkept\n");

    server.require_alive().unwrap();
    two.shut_down().unwrap();
    scene.end(server, one).unwrap();
}
