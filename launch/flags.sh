# shellcheck shell=bash
# Sourced by the launchers: their flags, and mistakes in them, which end in one line and exit code 2.

mistake() {
  echo "error: $*" >&2
  exit 2
}

# read_flags "OPTIONS" "SWITCHES" "$@": --name=value sets the variable of that name (a dash counts as an underscore),
# a switch sets its own to 1, and what follows `--` becomes the array VERB_FLAGS. --help prints the script's opening.
# (Variables here are called as no flag is.)
read_flags() {
  local options="$1" switches="$2" known="$1 $2" word flag
  shift 2
  VERB_FLAGS=()
  while [[ $# -gt 0 ]]; do
    word="$1"
    flag="${word%%=*}" && flag="${flag#--}" && flag="${flag//-/_}"
    shift
    case "$word" in
      --) VERB_FLAGS=("$@") && return ;;
      --help | -h) sed -n '2,/^[^#]/s/^# //p' "$0" && exit 0 ;;
      --*) ;;
      *) mistake "unexpected argument '$word'; flags are written --name=value, those of the verb after --" ;;
    esac
    if [[ " $options " == *" $flag "* ]]; then
      [[ "$word" == *=?* ]] || mistake "--$flag has no value; expected --$flag=VALUE"
      printf -v "$flag" %s "${word#*=}"
    elif [[ " $switches " == *" $flag "* ]]; then
      [[ "$word" != *=* ]] || mistake "--$flag takes no value"
      printf -v "$flag" 1
    else
      known="${known% }"
      mistake "unknown flag --$flag; expected --${known// /, --}, and those of the verb after --"
    fi
  done
}

# required FLAG EXAMPLE …: each of these flags was given.
required() {
  while [[ $# -gt 0 ]]; do
    [[ -n "${!1}" ]] || mistake "--$1 is missing; for example --$1=$2"
    shift 2
  done
}

# counts LOWEST FLAG …: each of these flags is a whole number from LOWEST on.
counts() {
  local lowest="$1" flag
  shift
  for flag in "$@"; do
    [[ "${!flag}" =~ ^[0-9]{1,9}$ && "$((10#${!flag}))" -ge "$lowest" ]] ||
      mistake "--$flag=${!flag}; expected a whole number, $lowest or more"
  done
}

# Kubernetes, and what is built on it, names objects like this.
kubernetes_name() {
  [[ "${!1}" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    mistake "--$1=${!1}; expected at most 40 of a-z, 0-9 and -, a letter first and no - last"
}

# workdir_for_all EXAMPLE: the verb's flags name a workdir, and one that does not lie in each host's own clone.
workdir_for_all() {
  local word workdir=''
  for word in ${VERB_FLAGS[@]+"${VERB_FLAGS[@]}"}; do
    [[ "$word" != --workdir=* ]] || workdir="${word#*=}"
  done
  [[ -n "$workdir" ]] || mistake "--workdir is missing after --; for example -- --config=configs/base64.py --workdir=$1"
  [[ "$workdir" == gs://?* || "$workdir" == /* ]] ||
    mistake "--workdir=$workdir would be another folder on every host; expected what all of them see, such as $1"
}

# Prints words as a shell reads them back.
show() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    [[ "$word" =~ ^[-A-Za-z0-9_@%+=:,./]+$ ]] || word="'${word//\'/$quote}'"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Exit codes that a restart mends (docs/training.md): 42, and death by a signal, as of a process whose peers have gone.
# 0 is finished; 2 is what a restart would not mend, and 1 a bug.
worth_a_restart() { [[ "$1" -eq 42 || "$1" -ge 128 ]]; }
