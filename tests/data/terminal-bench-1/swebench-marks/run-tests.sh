#!/bin/bash
echo "SWEBench results starts here"
if [ -e fixed.txt ]; then cat "$TEST_DIR/good.txt"; else echo FAILED; fi
echo "SWEBench results ends here"
