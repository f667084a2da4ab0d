#!/bin/sh
# Copy a folder of the slice, such as the exported model, to this machine.
. "$(dirname "$0")/common.sh"
need PROJECT ZONE TPU
[ $# -eq 2 ] || fail "usage: fetch.sh FOLDER TO, where FOLDER is as in the recipe: runs/hh/slpo/model"

tpus tpu-vm scp --recurse "$TPU:$folder/$1" "$2" --worker=0
