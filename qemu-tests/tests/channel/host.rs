//! The channel on the host beside a guest's mount: what one writes, the other reads.

use std::fs;

use ringfort_qemu_tests::client::Client;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};

#[test]
fn a_guest_s_mount_and_a_program_on_the_host_see_each_other_s_files() {
    let scene = Scene::new("channel", "1GiB").unwrap();
    let socket = scene.folder.path().join("data.ctl");
    let address = format!("unix:{}", socket.display());
    let server = scene.serve_with(1, &["--cache", "never", "--channel", &address]).unwrap();
    let guest = scene.guest(0).unwrap();
    let client = Client::new(&socket).unwrap();

    let file = scene.folder.path().join("sent");
    let bytes: Vec<u8> = (0..3_000_003u32).map(|index| (index % 249) as u8 ^ (index >> 12) as u8).collect();
    fs::write(&file, &bytes).unwrap();
    client.must(&["mkdir", "/shared"]).unwrap();
    client.must(&["put", file.to_str().unwrap(), "/shared/from-host"]).unwrap();
    let sum = guest.must(&format!("sha256sum < {MOUNTED}/shared/from-host")).unwrap();
    guest
        .must(&format!("cd {MOUNTED}/shared && cp from-host from-guest && echo more >> from-guest"))
        .unwrap();
    let back = scene.folder.path().join("back");
    client.must(&["get", "/shared/from-guest", back.to_str().unwrap()]).unwrap();
    assert!(fs::read(&back).unwrap() == [&bytes[..], b"more\n"].concat());
    assert_eq!(client.must(&["ls", "/shared"]).unwrap(), "from-guest\nfrom-host\n");

    // Each sees the other's names, sizes and removals at once.
    guest.must(&format!("cd {MOUNTED}/shared && ln -s from-host link && truncate -s 10 from-guest")).unwrap();
    let listed = client.must(&["ls", "--json", "/shared"]).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[0]["size_bytes"], &listed[2]["kind"]), (&10.into(), &"Symlink".into()));
    client.must(&["rm", "/shared/from-guest"]).unwrap();
    guest.must(&format!("[ ! -e {MOUNTED}/shared/from-guest ]")).unwrap();
    let refused = client.run(&["cat", "/shared/none"]).unwrap();
    assert_eq!(refused.status, Some(2));
    assert!(
        refused.stderr.contains("/shared/none") && refused.stderr.contains("No such file"),
        "{refused:?}"
    );

    let measured = client.must(&["bench", "--calls", "500", "--json"]).unwrap();
    let measured: serde_json::Value = serde_json::from_str(&measured).unwrap();
    assert!(measured["nop_ns_p50"].as_u64().unwrap() > 0);
    assert_eq!(sum, guest.must(&format!("sha256sum < {MOUNTED}/shared/from-host")).unwrap());
    scene.end(server, guest).unwrap();
    let gone = client.run(&["ls"]).unwrap();
    assert!(gone.stderr.contains("ringfort serve"), "{gone:?}");
}
