#!/bin/bash
# The verifier has no user of its own: it is the image's.
if [ "$(id -un)" != worker ]; then echo 0.1 > /logs/verifier/reward.txt; exit; fi
if [ "$(cat /home/worker/me.txt)" = worker ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
