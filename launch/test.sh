#!/usr/bin/env bash
# Installs what the tests need (a Chromium too, where it may) and runs them all:   bash launch/test.sh [--all] [pytest arguments]
#   --all   also the tests marked `pod`, which take minutes each: compiled for TPU pods, kill series, the quick start
#   --stack=lock|colab|latest   instead: the core tests in an environment of those versions (docs/support.md)
# Everything else is passed to pytest:              bash launch/test.sh tests/test_samplers.py -k order
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
source launch/browser.sh
source launch/stack.sh

markers=(-m "not pod") pins=test
if [[ "${1:-}" == "--all" ]]; then
  markers=() pins=pod
  export ALLOW_MULTIPLE_LIBTPU_LOAD=1 # workers that compile for TPUs at the same time
  shift
fi
paths=()
if [[ "${1:-}" == --stack=* ]]; then
  stack "${1#--stack=}" || exit $?
  shift
  paths=("${core[@]/%/.py}")
  paths=("${paths[@]/#/tests/test_}")
else
  environment "$pins" || exit $?
  browser
fi

# One worker per core, each told to use one thread: workers that each start a thread per core only wait
# for one another. The compilation cache is shared, so a program two workers need is compiled once.
cores="$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
workers="${TEST_WORKERS:-$((cores < 4 ? cores : 4))}"
threads=$((cores / workers > 1 ? cores / workers : 1))
export NPROC="$threads" OMP_NUM_THREADS="$threads" OPENBLAS_NUM_THREADS="$threads" MKL_NUM_THREADS="$threads"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$scratch/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=0

if [[ $# -gt 0 && "$1" != -* ]]; then
  paths=() # pytest is told which
elif [[ ${#paths[@]} -eq 0 ]]; then
  paths=(tests)
fi
"$PYTHON" -m pytest -q -n "$workers" --dist worksteal --durations=15 ${markers[@]+"${markers[@]}"} ${paths[@]+"${paths[@]}"} "$@"
