# shellcheck shell=bash
# Shared by the scripts of this folder: settings from the environment, and --dry-run, which prints
# every command instead of running it.

dry_run=0

# run COMMAND ...: prints it, as it could be typed; runs it unless this is a dry run.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  if [ "$dry_run" -eq 0 ]; then
    "$@"
  fi
}

# need NAME: ends with a line where a setting is missing.
need() {
  if [ -z "${!1:-}" ]; then
    echo "$0: set $1 (see --help)" >&2
    exit 2
  fi
}

# begin "$@": takes --dry-run, then sets `command` and its `arguments`; answers --help by `usage`.
begin() {
  if [ "${1:-}" = --dry-run ]; then
    dry_run=1
    shift
  fi
  command=${1:---help}
  if [ "$command" = --help ] || [ "$command" = -h ]; then
    usage
    exit 0
  fi
  shift
  # shellcheck disable=SC2034  # read by the scripts
  arguments=("$@")
}
