#!/bin/sh
# Start `jaxalign train RECIPE FLAG...` on every host; it goes on when the connection ends.
. "$(dirname "$0")/common.sh"
need PROJECT ZONE TPU
[ $# -ge 1 ] || fail "usage: launch.sh RECIPE [FLAG...]"
[ -f "$1" ] || fail "$1: no such recipe"

recipe=$(basename "$1")
tpus tpu-vm scp "$1" "$TPU:$folder/$recipe" --worker=0
shift
words="train $(quoted "$recipe") --run.distributed"
for word in "$@"; do
  words="$words $(quoted "$word")"
done
# $-expressions are for the shell of each host.
on_every_host "if [ -e jaxalign.pid ] && kill -0 \$(cat jaxalign.pid) 2>/dev/null; then
  echo \"\$(hostname): jaxalign is running already\" >&2; exit 1
fi
cd $folder
nohup \$HOME/venv/bin/jaxalign $words >>log-\$(hostname).txt 2>&1 </dev/null &
echo \$! >\$HOME/jaxalign.pid"
echo "started; follow it with: gcloud compute tpus tpu-vm ssh $TPU --project=$PROJECT" \
  "--zone=$ZONE --worker=0 --command='tail -f $folder/log-*.txt'"
