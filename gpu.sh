#!/usr/bin/env bash
# trocar bench gpu with the first Python that can run it: the virtual environment's, the machine's own, or the machine's packages with
# trocar linked in beside them. None of these needs a network; only where all fail is the environment made, which does.
set -euo pipefail
: "${PYTHON:=python3}" "${VENV:=.venv}"

can_run() {
    "$1" -c 'import pytest, torch, trocar.engine.cli' 2>/dev/null
}

# An environment over $PYTHON's packages. Its own --system-site-packages would be those of the Python below where $PYTHON is itself an
# environment's, so the folders are named one by one.
link_in() {
    "$PYTHON" -m venv --clear --without-pip build/gpu || return
    "$PYTHON" -c 'import sys; print("\n".join(path for path in sys.path if path.endswith("-packages")))' \
        >"$(build/gpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth" || return
    "$PYTHON" -m pip --python build/gpu/bin/python install --quiet --disable-pip-version-check --no-index --no-deps \
        --no-build-isolation --editable . || return
    can_run build/gpu/bin/python
}

if can_run "$VENV/bin/python"; then
    python=$VENV/bin/python
elif can_run "$PYTHON"; then
    python=$PYTHON
elif "$PYTHON" -c 'import pip, pytest, setuptools, torch' 2>/dev/null && link_in; then
    python=build/gpu/bin/python
else
    bash setup.sh '[dev]'
    python=$VENV/bin/python
fi
exec "$python" -m trocar.engine.cli bench gpu "$@"
