#!/bin/sh
# After a preemption or a failed host: stop what is left, ask for the slice again if it is gone,
# and start the same command, which goes on from its last checkpoint.
. "$(dirname "$0")/common.sh"
need PROJECT ZONE TPU
[ $# -ge 1 ] || fail "usage: resume.sh RECIPE [FLAG...], as for launch.sh"

now=$(state) || now=
if [ "$now" = ACTIVE ]; then
  # SIGTERM makes jaxalign save; hosts whose peers are gone cannot, and are killed.
  on_every_host "[ -e jaxalign.pid ] || exit 0
pid=\$(cat jaxalign.pid)
kill \$pid 2>/dev/null || exit 0
for second in \$(seq 120); do kill -0 \$pid 2>/dev/null || exit 0; sleep 1; done
kill -9 \$pid"
else
  need TYPE RUNTIME
  [ -z "$now" ] || tpus queued-resources delete "$TPU" --force --quiet
  sh "$here/create.sh"
fi
exec sh "$here/launch.sh" "$@"
