#!/bin/sh
# Runs on every host of a slice: the working folder, a Python, and jaxalign. $1: NFS export or ''.
set -eu

sudo mkdir -p /mnt/jaxalign
if [ -n "$1" ] && ! mountpoint -q /mnt/jaxalign; then
  sudo apt-get -q update
  sudo apt-get -qy install nfs-common
  sudo mount -t nfs "$1" /mnt/jaxalign
fi
sudo chown "$(id -u)" /mnt/jaxalign

# uv brings its own Python: that of the image may be older than jaxalign needs.
curl -LsSf https://astral.sh/uv/install.sh | sh
rm -rf jaxalign venv
mkdir jaxalign
tar -xzf jaxalign.tar.gz -C jaxalign
.local/bin/uv venv --quiet --python 3.12 venv
.local/bin/uv pip install --quiet --python venv/bin/python './jaxalign[tpu]'
