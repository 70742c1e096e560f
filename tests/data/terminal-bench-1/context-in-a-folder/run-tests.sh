#!/bin/bash
source "$TEST_DIR/lib.sh"
check tests/test_outputs.py::test_copy cmp /srv/work/seed.txt copy.txt
check tests/test_outputs.py::test_variable test "$COLOUR" = dark-blue
summary
