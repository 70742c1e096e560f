#!/bin/bash
source "$TEST_DIR/lib.sh"
until [ -e go.txt ]; do sleep 0.1; done
check tests/test_outputs.py::test_go test -e go.txt
summary
