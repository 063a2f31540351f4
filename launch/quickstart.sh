#!/usr/bin/env bash
# The whole method from nothing, on two CPU cores:   bash launch/quickstart.sh [--tiny] [--out=DIR]
# Makes .venv, installs the pinned versions, then renders data, trains, branches, samples and writes
# runs/quickstart/report.html. Interrupted (Ctrl-C), the same command goes on where it stopped.
#   --tiny      every step in miniature, in a few minutes: shows that it runs, not what it learns
#   --out=DIR   another folder than runs/quickstart
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
environment lock || exit $?
exec "$PYTHON" -m launch.quickstart "$@"
