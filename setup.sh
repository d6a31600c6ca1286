#!/usr/bin/env bash
# Makes or completes the virtual environment: setup.sh '' for running, setup.sh '[dev]' for testing as well, '[dev,docs]' for the
# site of the pages too.
# A stamp inside it says that it is ours and what it was made from; an interrupted or outdated one is completed, another interpreter
# starts anew. What has no stamp is somebody's own, and left alone.
set -euo pipefail
extra=${1-}
: "${PYTHON:=python3}" "${VENV:=.venv}"

fail() {
    echo "trocar: $*" >&2
    exit 1
}

command -v "$PYTHON" >/dev/null || fail "no $PYTHON here; install Python 3.10 or later, or name one: make PYTHON=/path/to/python3"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$("$PYTHON" --version) is too old; Python 3.10 or later is needed: make PYTHON=/path/to/python3"
[ "$(uname -sm)" = "Linux x86_64" ] ||
    echo "trocar: $(uname -sm) is not tested: the CPU path may work, Triton and DALI need Linux x86-64" >&2

whose='import sys; print(sys.base_prefix, sys.version)'
base=$("$PYTHON" -c "$whose")
wanted="$base $(cat pyproject.toml setup.py | cksum) "
stamp=$VENV/trocar-stamp
found=$(cat "$stamp" 2>/dev/null || true)
# What was made for testing serves for running too, what was made for the pages for both.
case $found in
    "$wanted$extra" | "${wanted}[dev,docs]") exit 0 ;;
    "${wanted}[dev]") [ "$extra" = "[dev,docs]" ] || exit 0 ;;
esac

if [ -e "$VENV" ] && [ ! -e "$stamp" ]; then
    fail "$VENV was not made by setup.sh and stays as it is; move it, or name another place: make VENV=.venv-trocar"
fi
if [ -d "$VENV" ] && { [ "$("$VENV/bin/python" -c "$whose" 2>/dev/null)" != "$base" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }; then
    echo "trocar: $VENV is incomplete or of another Python; making it anew"
    rm -rf "$VENV"
fi
if [ ! -d "$VENV" ]; then
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$PYTHON lacks venv or ensurepip; on Debian or Ubuntu: apt install python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    mkdir -p "$VENV"
    echo unfinished >"$stamp"
    "$PYTHON" -m venv "$VENV"
fi
echo "trocar: installing into $VENV (about 6 GB; a few minutes)"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extra"
echo "$wanted$extra" >"$stamp"
