#!/bin/bash
source "$TEST_DIR/lib.sh"
check tests/test_outputs.py::test_hello grep -qx hello hello.txt
summary
