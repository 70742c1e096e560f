#!/bin/bash
# Half, so that the mean shows: 0.75 for both steps done.
if [ "$(wc -l < list.txt)" = 2 ]; then echo 0.5; else echo 0; fi > /logs/verifier/reward.txt
