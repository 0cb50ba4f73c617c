#!/usr/bin/env bash
# The main job at toy size, offline: 30 pre-training runs, each probed downstream, and the study
# of them. About 6 minutes on 2 cores after the install. Run it again and it goes on where it was.
#   launch/quickstart.sh [WORKDIR [sweep's flags …]]      default: runs/quickstart
# On a GPU or TPU, which takes one process at a time: launch/quickstart.sh runs/quickstart --jobs 1
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
workdir=$(realpath -m "${1:-$here/../runs/quickstart}")
source "$here/setup.sh"
"$PYTHON" -m big_transfer.sweep --sweep configs/quickstart.py --workdir "$workdir/trials" "${@:2}"
"$PYTHON" -m big_transfer.study --runs "$workdir/trials/*" --out "$workdir/study"
