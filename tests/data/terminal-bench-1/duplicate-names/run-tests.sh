#!/bin/bash
source "$TEST_DIR/lib.sh"
check tests/test_first.py::test_there test -e first.txt
check tests/test_second.py::test_there true
summary
