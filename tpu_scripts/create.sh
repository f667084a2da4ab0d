#!/bin/sh
# Ask for a TPU slice, wait until it is there, and install this checkout on every host.
. "$(dirname "$0")/common.sh"
need PROJECT ZONE TPU TYPE RUNTIME

tpus queued-resources create "$TPU" --node-id="$TPU" --accelerator-type="$TYPE" \
  --runtime-version="$RUNTIME" --metadata=enable-oslogin=TRUE
now=$(state)
while [ "$now" != ACTIVE ]; do
  case $now in
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      echo "create.sh: the request for $TPU is $now; delete it and ask again" >&2
      exit 1
      ;;
  esac
  echo "$TPU: $now"
  sleep 30
  now=$(state)
done

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git -C "$here/.." archive --format=tar.gz --output="$archive" HEAD
tpus tpu-vm scp "$archive" "$TPU:jaxalign.tar.gz" --worker=all
tpus tpu-vm scp "$here/setup.sh" "$TPU:setup.sh" --worker=all
on_every_host "sh setup.sh $(quoted "${SHARE:-}")"
