//! Examples and exit codes, shown after the flags.

pub const TOP: &str = "\
Examples:
  ringfort volume create ./data --size 8GiB
  ringfort serve ./data --virtiofs /run/ringfort/vm1.sock
  ringfort volume status ./data

Exit codes:
  0  done
  1  `volume check` found damage, or `volume export` could not read all
  2  the command could not run: wrong flags, or a failure that the message explains

The log goes to standard error. --log-level (or RINGFORT_LOG) says how much of it: a level, or a filter such as
info,ringfort_store=debug; --log-format json writes an object a line.";

pub const CREATE: &str = "\
Examples:
  ringfort volume create ./data --size 8GiB
      Six component files in ./data: data 4+2, metadata mirrored three ways.
  ringfort volume create ./small --size 1GiB --data 2+1
  ringfort volume create ./fast --data 4+2 --size 100GiB --memory 8GiB \\
      --component /dev/sda --component /dev/sdb --component /dev/sdc \\
      --component /dev/sdd --component /dev/sde --component /dev/sdf \\
      --metadata-component /dev/nvme0n1 --metadata-component /dev/nvme1n1 --metadata-component /dev/nvme2n1

Block devices given with --component are overwritten.

Exit codes: 0 created; 2 refused or failed, nothing is left behind.";

pub const SERVE: &str = "\
Examples:
  ringfort serve ./data --virtiofs /run/ringfort/vm1.sock
  ringfort serve ./data --virtiofs /run/ringfort/vm1.sock --virtiofs /run/ringfort/vm2.sock,queues=4 --cache auto
  ringfort serve ./data --channel unix:/run/ringfort/data.ctl
      For programs of this host, through the client library, in shared memory.
  ringfort serve --config /etc/ringfort/vm1.toml --metrics unix:/run/ringfort/metrics.sock
  ringfort serve --config /etc/ringfort/vm1.toml --cache never --print-config

A configuration file is TOML, with the names of the flags:
  volume = \"/srv/ringfort/data\"
  commit_interval_ms = 500
  [[virtiofs]]
  socket = \"/run/ringfort/vm1.sock\"
  cache = \"auto\"
Flags override it. A flag for all sockets (--cache, --writeback, --queues) overrides what the file says of any;
--virtiofs replaces the file's list.

Give QEMU `-chardev socket,id=fs,path=/run/ringfort/vm1.sock` and `-device vhost-user-fs-pci,chardev=fs,tag=ringfort`
with shared memory (`memory-backend-memfd,share=on`); in the guest: mount -t virtiofs ringfort /mnt

SIGTERM or SIGINT stops cleanly: requests drain, everything is synced. A second one exits at once; what was synced is
safe. SIGHUP is ignored: settings change with a restart, which guests survive without noticing more than a pause.

Exit codes: 0 stopped cleanly; 2 could not start, or failed.";

pub const STATUS: &str = "\
Examples:
  ringfort volume status ./data
  ringfort volume status ./data --json | jq .space
  ringfort volume status ./data --watch 5
      Rates since the last look, every five seconds, until Ctrl-C. On a terminal the picture is redrawn; elsewhere
      each interval is a line. With --json each line is an object: the status, and its rates.

A volume that is being served answers through its admin socket; another is opened for reading.

Exit codes: 0 reported, or the watch was ended; 2 could not report.";

pub const CHECK: &str = "\
Examples:
  ringfort volume check ./data
  ringfort volume check ./data --json

Reads every structure and every block of a volume that is not being served, and changes nothing. Ctrl-C ends it at
any time.

Exit codes: 0 clean; 1 damage found; 2 could not run.";

pub const CHECKPOINT: &str = "\
Examples:
  ringfort volume checkpoint ./data

What was synced is safe without it. A server that is killed afterwards has little to replay when it starts again, and
`volume status` counts every byte that earlier writes cause. Guests are served meanwhile.

Exit codes: 0 done; 2 nobody serves the volume, or it failed.";

pub const EXPORT: &str = "\
Examples:
  ringfort volume export ./data | tar -x -C ./rescued
  ringfort volume export ./data --output data.tar

The volume is opened as `serve` opens it, recovery included; it must not be being served. Names, owners, modes, links,
device nodes and extended attributes are kept (`tar --xattrs` restores those), times to the second. Holes are written as
zeros; sockets are left out.

Exit codes: 0 exported; 1 what could not be read is named, and is zeros or missing; 2 could not run.";

pub const LIST: &str = "\
Examples:
  ringfort volume list
      Volumes below the current directory.
  ringfort volume list /srv/ringfort /mnt/backup --json

A volume is a directory with a volume.toml. Links are not followed. One that is not being served is opened for
reading, which takes as long as `volume status` does.

Exit codes: 0 listed, also where there is none; 2 a directory or a volume could not be read (the rest is listed).";

pub const GROW: &str = "\
Examples:
  ringfort volume grow ./data --size 16GiB
  ringfort volume grow ./data --by 4GiB --yes
  ringfort volume grow ./fast
      After block devices were made larger: all that they have room for now.

Component files are extended; block devices must have grown before. Every component must be there: replace lost ones
first. It may be interrupted: the volume then has its old size or its new one, and the same command finishes the work.

Exit codes: 0 grown, or as large already; 2 refused or failed.";

pub const REPLACE: &str = "\
Examples:
  ringfort volume replace ./data --position 3
      The file is gone: a new one is made in its place.
  ringfort volume replace ./fast --position 1 --component /dev/sdg
  ringfort volume replace ./data --position 3 --json | jq .done_bytes

For a volume that is not being served. What the new component has to hold is computed from the others and verified. A
failed component's old file is never overwritten: move it away, or name another path. It may be interrupted: the volume
stays as it was, and the same command begins anew.

Exit codes: 0 replaced; 2 refused or failed.";

pub const COMPLETIONS: &str = "\
Examples:
  ringfort completions bash > /etc/bash_completion.d/ringfort
  ringfort completions zsh > ~/.zfunc/_ringfort

Exit codes: 0 written; 2 could not write.";

pub const MANUAL: &str = "\
Examples:
  ringfort manual /usr/local/share/man/man1

Exit codes: 0 written; 2 could not write.";

pub const SNAPSHOT_CREATE: &str = "\
Examples:
  ringfort snapshot create ./data before-upgrade

Everything that was completed before is in it, nothing that begins after; durable when the command returns. What a guest
holds in its cache is not: run `sync` there first. Guests and programs find it below .ringfort/snapshots in the root
directory, where nothing can be changed.

Exit codes: 0 taken; 2 nobody serves the volume, or it was refused.";

pub const SNAPSHOT_LIST: &str = "\
Examples:
  ringfort snapshot list ./data
  ringfort snapshot list ./data --json | jq -r '.snapshots[].name'

Exit codes: 0 listed; 2 nobody serves the volume.";

pub const SNAPSHOT_DELETE: &str = "\
Examples:
  ringfort snapshot delete ./data before-upgrade
  ringfort snapshot delete ./data monday tuesday --yes

They are gone at once; the space that they alone held returns in the background, also after a restart. One whose files are open,
or that clones stand on, is refused.

Exit codes: 0 deleted; 2 one was refused (those named before it are gone).";

pub const CLONE_CREATE: &str = "\
Examples:
  ringfort clone create ./data golden vm7

Takes no space until one of the two is written to.

Exit codes: 0 made; 2 nobody serves the volume, or it was refused.";

pub const CLONE_LIST: &str = "\
Examples:
  ringfort clone list ./data
  ringfort clone list ./data --json | jq -r '.clones[].name'

Exit codes: 0 listed; 2 nobody serves the volume.";

pub const CLONE_DELETE: &str = "\
Examples:
  ringfort clone delete ./data vm7 --yes

Exit codes: 0 deleted; 2 one was refused (those named before it are gone).";
