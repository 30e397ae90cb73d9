# Makes .venv with the standard library, gets uv inside it, and installs what requirements.lock pins.
# May be ended at any moment and run again: .venv/.ready is made last, and an environment without pip is made anew.
set -eu
python="${PYTHON:-python3}"
fail() {
    echo "setup: $1" >&2
    exit 1
}
command -v "$python" >/dev/null 2>&1 || fail "there is no $python: install Python 3.11 or newer, or name one with 'make setup PYTHON=...'"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version 2>&1) is too old: 3.11 or newer is needed; name one with 'make setup PYTHON=python3.11'"
rm -f .venv/.ready
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    # Debian ships the standard library's venv in a package of its own.
    if ! "$python" -m venv .venv 2>/dev/null; then
        rm -rf .venv
        [ "$(id -u)" = 0 ] || fail "run 'sudo apt-get install python3-venv' first"
        command -v apt-get >/dev/null 2>&1 || fail "'$python -m venv' does not work here: install what it needs first"
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
        "$python" -m venv .venv
    fi
fi
echo "setup: installing what requirements.lock pins into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.8,<1" ||
    fail "pip could not install uv (see above): a package index must be reachable, or set PIP_INDEX_URL and UV_INDEX_URL"
.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps -e .
touch .venv/.ready
