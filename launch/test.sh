#!/usr/bin/env bash
# The tests, on CPU, offline: under 6 minutes on 2 cores. Arguments go to pytest:
#   launch/test.sh -m slow -n 0         the longer ones, in one process: some tell the time
#   launch/test.sh tests/study -k hull
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/setup.sh"
exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
