#!/bin/bash
source "$TEST_DIR/lib.sh"
check tests/test_outputs.py::test_done test -e done.txt
check tests/test_outputs.py::test_answer test "$ANSWER" = 42
summary
