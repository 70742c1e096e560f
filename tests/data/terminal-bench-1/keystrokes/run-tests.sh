#!/bin/bash
source "$TEST_DIR/lib.sh"
check tests/test_outputs.py::test_typed grep -qx typed typed.txt
summary
