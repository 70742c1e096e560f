#!/bin/bash
source "$TEST_DIR/lib.sh"
check tests/test_outputs.py::test_greeting test "$GREETING" = hello
summary
