# Sourced by the steps' test.sh: grade CONDITION writes the reward.
grade() {
    if "$@"; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
}
