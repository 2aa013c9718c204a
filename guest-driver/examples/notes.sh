#!/bin/sh
# notes.sh VOLUME-ADDRESS TEXT...: keeps lines in /notes/log of a volume, and shows what is there.
set -eu
export RINGFORT_CONNECT="${1:?notes.sh VOLUME-ADDRESS TEXT...}"
shift

rf mkdir -p /notes
rf stat /notes/log >/dev/null 2>&1 || rf touch /notes/log
# The new file takes the name when all of it is there: until then readers see the old one.
{ rf cat /notes/log; printf '%s\n' "$@"; } | rf put - /notes/log

rf cat /notes/log
rf ls -l /notes | while read -r _mode _links _uid _gid size _day _time name; do
    echo "$name: $size bytes"
done
