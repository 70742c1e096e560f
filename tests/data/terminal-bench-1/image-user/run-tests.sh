#!/bin/bash
source "$TEST_DIR/lib.sh"
check tests/test_outputs.py::test_root test "$(id -u)" = 0
check tests/test_outputs.py::test_owner test "$(stat -c %U mine.txt)" = nobody
summary
