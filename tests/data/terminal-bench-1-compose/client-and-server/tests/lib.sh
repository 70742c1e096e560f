# Sourced by run-tests.sh: runs checks and prints them as pytest -rA does.
checks=()
check() { # name, command...
  local name=$1
  shift
  if "$@" > /dev/null 2>&1; then checks+=("PASSED $name"); else
    checks+=("FAILED $name - AssertionError: $*")
  fi
}
summary() {
  echo "=========================== short test summary info ============================"
  printf '%s\n' "${checks[@]}"
  echo "============================== ${#checks[@]} checks in 0.01s =============================="
}
