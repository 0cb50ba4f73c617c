#!/usr/bin/env bash
# The tests, on CPU, offline: under 6 minutes on 2 cores. Arguments go to pytest:
#   launch/test.sh -m slow              the longer ones
#   launch/test.sh tests/study -k hull
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/setup.sh"
exec "$PYTHON" -m pytest "$@"
