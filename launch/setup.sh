#!/usr/bin/env bash
# Makes .venv beside the code and installs the package into it; does nothing when that is done.
# Sourced by the other scripts: afterwards $PYTHON is the interpreter to use.
#   BIG_TRANSFER_EXTRAS=test,cuda   extras to install (default: test)
#   PYTHON=python3.12               the interpreter to make .venv with (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${BIG_TRANSFER_EXTRAS:-test}
stamp=.venv/installed
wanted="$extras $(cat setup.py pyproject.toml | cksum)"
if [[ "$(cat $stamp 2>/dev/null)" != "$wanted" ]]; then
  base=${PYTHON:-python3}
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $base is older than Python 3.11; name a newer one: PYTHON=python3.12 $0" >&2
    exit 1
  }
  echo "installing into .venv (about a minute, 1.4 GB; once)"
  "$base" -m venv .venv
  .venv/bin/python -m pip install -qq --disable-pip-version-check \
    --config-settings editable_mode=compat --editable ".[$extras]"
  echo "$wanted" > $stamp
fi
PYTHON=$PWD/.venv/bin/python
# Large pages for malloc: on CPU half of a train step's time can be page faults.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
