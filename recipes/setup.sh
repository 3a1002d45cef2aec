#!/usr/bin/env bash
# Make a virtual environment and install the package with the tested versions: recipes/setup.sh [.venv]
# The environment variables CONSTRAINTS, EXTRAS and PINS choose other versions and extras.
# espeakng-loader (extra `corpus`) contains the GPL-3 speech synthesiser (espeak-ng) that voices the generated corpus.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

suitable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

if [ ! -x "$venv/bin/python" ]; then
  for python in ${PYTHON:-python3 python3.11 python3.12 python3.10}; do
    suitable "$python" && break
    python=
  done
  if [ -z "$python" ]; then
    echo "setup: no Python 3.10, 3.11 or 3.12 with the venv module was found (mediapipe 0.10.14 has no wheel for others)." >&2
    echo "       Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2
    exit 2
  fi
  echo "setup: $("$python" --version) -> $venv (the first install takes some minutes and about 3 GB)"
  "$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install -q --disable-pip-version-check \
  -c "${CONSTRAINTS:-constraints.txt}" -e ".[${EXTRAS:-corpus,report,dev}]" ${PINS:-} 2> >(grep -v '^WARNING: Location' >&2)
"$venv/bin/python" -m pip check --disable-pip-version-check
touch "$venv/installed"
