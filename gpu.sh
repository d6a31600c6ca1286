#!/usr/bin/env bash
# trocar bench gpu with the first Python that can run it: the virtual environment's, the machine's own, or the machine's packages with
# trocar linked in beside them. None of these needs a network; only where all fail is the environment made, which does.
set -euo pipefail
: "${PYTHON:=python3}" "${VENV:=.venv}"

can_run() {
    "$1" -c 'import pytest, torch, trocar.engine.cli' 2>/dev/null
}

if can_run "$VENV/bin/python"; then
    python=$VENV/bin/python
elif can_run "$PYTHON"; then
    python=$PYTHON
elif "$PYTHON" -c 'import pytest, setuptools, torch' 2>/dev/null; then
    "$PYTHON" -m venv --system-site-packages build/gpu
    build/gpu/bin/python -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .
    python=build/gpu/bin/python
else
    bash setup.sh '[dev]'
    python=$VENV/bin/python
fi
exec "$python" -m trocar.engine.cli bench gpu "$@"
