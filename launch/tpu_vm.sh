#!/usr/bin/env bash
# Runs one command on all workers of a Cloud TPU VM that exists already, with this checkout installed there.
#
#   launch/tpu_vm.sh NAME ZONE COMMAND...
#   EXTRAS=tpu,hub launch/tpu_vm.sh my-tpu us-west4-a python -m pasta_jax.decode.main \
#     --model=hf:google/gemma-2-2b-it --prompt="Name three rivers."
#
# Creates and deletes nothing in the cloud. Needs gcloud, logged in, with a project set. What is committed is
# copied to ~/pasta_jax on each worker, and installed into ~/pasta_jax/.venv with the extras in EXTRAS (default:
# tpu,demo) and Python 3.12, which uv brings along where the VM's image has an older one. SETUP=0 skips both and only runs the command. DRY_RUN=1 prints the gcloud commands instead.
# A command that spans several workers must connect its processes itself: train.main does with --distributed,
# decode.main is one process and wants a VM with one worker (docs/tpu.md).
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "usage: launch/tpu_vm.sh NAME ZONE COMMAND... (the VM must exist: docs/tpu.md)" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
extras=${EXTRAS:-tpu,demo}
root=$(cd "$(dirname "$0")/.." && pwd)

gcloud_() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf '%q ' gcloud "$@"
    echo
  else
    gcloud "$@"
  fi
}

on_workers() {
  gcloud_ compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

if [[ ${DRY_RUN:-0} != 1 ]] && ! command -v gcloud >/dev/null; then
  echo "error: gcloud is not installed: https://cloud.google.com/sdk/docs/install" >&2
  exit 1
fi
if [[ ${SETUP:-1} != 0 ]]; then
  archive=$(mktemp -t pasta_jax.XXXXXX.tar.gz)
  trap 'rm -f "$archive"' EXIT
  git -C "$root" archive --format=tar.gz -o "$archive" HEAD
  gcloud_ compute tpus tpu-vm scp "$archive" "$name":pasta_jax.tar.gz --zone="$zone" --worker=all
  on_workers "mkdir -p pasta_jax && tar -xzf pasta_jax.tar.gz -C pasta_jax && cd pasta_jax \
&& python3 -m pip install --quiet --user uv && export PATH=\$HOME/.local/bin:\$PATH \
&& uv venv --quiet --allow-existing --python 3.12 .venv \
&& uv pip install --quiet --python .venv/bin/python --editable '.[$extras]'"
fi
on_workers "cd pasta_jax && . .venv/bin/activate && $(printf '%q ' "$@")"
