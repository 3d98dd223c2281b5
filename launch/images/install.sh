#!/usr/bin/env bash
# What both images run as root, from the repository's folder: Debian's part, then /opt/kappaspeech from the lock.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update
# python3 runs it; ssh and pdsh are how DeepSpeed reaches other hosts; the rest compiles what has no wheel, and goes again
apt-get install -y --no-install-recommends python3 python3-venv openssh-client pdsh
build="build-essential python3-dev"
# shellcheck disable=SC2086  # two words
apt-get install -y --no-install-recommends $build
python3 -m venv /opt/kappaspeech
/opt/kappaspeech/bin/pip install --no-cache-dir --disable-pip-version-check \
  --constraint launch/images/constraints.txt --editable ".[demo,http,s3,parquet]"
# shellcheck disable=SC2086
apt-get purge -y --auto-remove $build
rm -rf /var/lib/apt/lists/*
