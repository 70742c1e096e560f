#!/bin/bash
# The two files disagree: reward.json counts.
if [ -s done.txt ]; then
  echo '{"reward": 0.75}' > /logs/verifier/reward.json
  echo 0 > /logs/verifier/reward.txt
else
  echo '{"reward": "none"}' > /logs/verifier/reward.json
  echo 1 > /logs/verifier/reward.txt
fi
