#!/bin/bash
source "$TEST_DIR/lib.sh"
check tests/test_outputs.py::test_word grep -qx from-the-server word.txt
summary
