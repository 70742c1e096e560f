#!/bin/bash
source "$TEST_DIR/lib.sh"
[ ! -e list.txt ] || check tests/test_outputs.py::test_list test -e list.txt
summary
