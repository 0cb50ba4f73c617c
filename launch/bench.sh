#!/usr/bin/env bash
# The benchmark: a tiny ViT's step, loop, start, probes and memory, and probes of one layer and of
# twelve at larger sizes (part probes, 2 minutes, 5 GB), the input pipeline, and on an
# accelerator ViT-S/16 to L/16; about 8 minutes on 2 cores. Part population takes 10 more and is
# measured only if named.
#   launch/bench.sh [--out FILE.json] [--only NAME …] [--big-vision PATH]
# --big-vision: a checkout of big_vision, whose model is then timed beside ours. CIFAR-10 is read
# from TFDS_DATA_DIR; where it is missing, built-in fractals take its place.
set -euo pipefail
caller=$PWD
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/setup.sh"
cd "$caller"  # paths in the arguments are relative to it
exec "$PYTHON" "$here/../tests/bench" "$@"
