#!/bin/bash
cd /app/repo || exit
if [ "$(git rev-list --merges --count main)" = 1 ] && [ -e two ]; then echo 1; else echo 0; fi \
  > /logs/verifier/reward.txt
