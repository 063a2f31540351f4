# Sourced by test.sh. `stack NAME` makes .venv-NAME with the package and the core tests' tools, and sets PYTHON:
#   lock     Python 3.11, the versions of requirements/lock.txt
#   colab    Python 3.13, what Google Colab ships (requirements/colab.txt), everything else as new as it admits
#   latest   the newest Python up to 3.13, the newest versions of everything
# STACK_PYTHON=COMMAND takes another interpreter. Exit code 2: no such stack, or pip failed; 77: no such Python here.

NO_PYTHON=77

# What must hold on every stack: the method's parts, data, training, checkpoints, the verbs, the bundled cascade.
# shellcheck disable=SC2034 # test.sh runs them
core=(
  noise denoiser experts conditioning guidance samplers paint_phrases encoders_files loader scenes_builder records
  slices training_step checkpoint_v1 launch_sample architecture
)

# Prints the first interpreter there is of the given versions, on PATH or among pyenv's.
interpreter() {
  local version candidate
  for version in "$@"; do
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
      if "$candidate" -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
        echo "$candidate"
        return
      fi
    done
  done
  return 1
}

stack() {
  local name="$1" versions wanted python asked
  case "$name" in
    lock) versions=(3.11) asked=(-r requirements/lock.txt -c requirements/test.txt) ;;
    colab) versions=(3.13) asked=(-r requirements/colab.txt) ;;
    latest) versions=(3.13 3.12 3.11) asked=(--upgrade --upgrade-strategy eager) ;;
    *)
      echo "error: --stack=$name; choices: colab, latest, lock" >&2
      return 2
      ;;
  esac
  if ! python="${STACK_PYTHON:-$(interpreter "${versions[@]}")}"; then
    echo "stack $name: not run, there is no Python ${versions[*]} here" >&2
    return "$NO_PYTHON"
  fi
  PYTHON="$PWD/.venv-$name/bin/python"
  wanted="$("$python" --version) $(cat setup.py requirements/*.txt | cksum)"
  if [[ "$(cat ".venv-$name/stamp" 2>/dev/null)" != "$wanted" ]]; then
    echo "Making .venv-$name with $("$python" --version)"
    "$python" -m venv --clear ".venv-$name" || return 2
    "$PYTHON" -m pip install --disable-pip-version-check --quiet "${asked[@]}" '.[dev]' || return 2
    echo "$wanted" >".venv-$name/stamp"
  fi
  "$PYTHON" -c 'import platform, jax, flax, numpy, orbax.checkpoint as o
print(f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__},",
      f"numpy {numpy.__version__}, orbax-checkpoint {o.__version__}")'
}
