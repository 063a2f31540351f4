# Sourced by quickstart.sh and test.sh. `environment LOCK` makes .venv if it is missing, installs the pins
# of requirements/LOCK.txt into it once, and sets PYTHON. A stamp with the hash of the pins, written last,
# makes the next call return at once; changed pins are installed again.

# Prints the first Python 3.11 or newer on PATH.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed, and none was found on PATH" >&2
  return 2
}

environment() {
  local lock="$1" wanted interpreter
  PYTHON="$PWD/.venv/bin/python"
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    interpreter="$(find_python)" || return 2
    echo "Making .venv with $("$interpreter" --version)"
    if ! "$interpreter" -m venv --clear .venv; then
      echo "error: '$interpreter -m venv .venv' failed; install Python's venv module (Debian: python3-venv)" >&2
      return 2
    fi
  fi
  wanted="$(cat requirements/lock.txt "requirements/$lock.txt" requirements/test_bare.txt requirements/docs.txt | cksum)"
  if [[ "$(cat ".venv/$lock.stamp" 2>/dev/null)" != "$wanted" ]]; then
    echo "Installing requirements/$lock.txt into .venv (only the first time)"
    "$PYTHON" -m pip install --disable-pip-version-check --quiet -r "requirements/$lock.txt" || return 2
    if [[ "$lock" != lock ]]; then # the tests' peers that would pull in a torchvision of another torch
      "$PYTHON" -m pip install --disable-pip-version-check --quiet --no-deps -r requirements/test_bare.txt || return 2
    fi
    echo "$wanted" >".venv/$lock.stamp"
  fi
}
