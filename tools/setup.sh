# Makes .venv with the standard library, gets uv inside it, and installs what requirements.lock pins.
set -eu
python="${PYTHON:-python3}"
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    # Debian ships the standard library's venv in a package of its own.
    if ! "$python" -m venv .venv 2>/dev/null; then
        rm -rf .venv
        [ "$(id -u)" = 0 ] || { echo "setup: run 'sudo apt-get install python3-venv' first" >&2; exit 1; }
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
        "$python" -m venv .venv
    fi
fi
echo "setup: installing what requirements.lock pins into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.8,<1"
.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps -e .
touch .venv/.ready
