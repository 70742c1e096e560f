#!/bin/bash
# The exit status means nothing.
if [ "$(cat ok.txt)" = ok ]; then echo 1 > /logs/verifier/reward.txt; exit 3; fi
echo 0 > /logs/verifier/reward.txt
exit 0
