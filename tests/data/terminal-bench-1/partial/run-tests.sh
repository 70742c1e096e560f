#!/bin/bash
source "$TEST_DIR/lib.sh"
check tests/test_outputs.py::test_one grep -qx 1 one.txt
check tests/test_outputs.py::test_two grep -qx 2 two.txt
summary
