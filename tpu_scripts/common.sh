# Read by the other scripts; see README.md for the variables.
set -eu
here=$(dirname "$0")
folder=/mnt/jaxalign

fail() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

need() {
  missing=
  for name in "$@"; do
    eval "[ -n \"\${$name:-}\" ]" || missing="$missing $name"
  done
  [ -z "$missing" ] || fail "not set:$missing; tpu_scripts/README.md says what they are"
}

tpus() {
  gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"
}

on_every_host() {
  tpus tpu-vm ssh "$TPU" --worker=all --command="$1"
}

state() {
  tpus queued-resources describe "$TPU" --format='value(state.state)'
}

# One argument, quoted for the shell of a host.
quoted() {
  printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}
