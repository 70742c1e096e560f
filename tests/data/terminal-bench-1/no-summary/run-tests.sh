#!/bin/bash
source "$TEST_DIR/lib.sh"
[ -e answer.txt ] || exit 1
check tests/test_outputs.py::test_answer test -e answer.txt
summary
