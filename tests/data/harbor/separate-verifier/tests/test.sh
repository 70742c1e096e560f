#!/bin/bash
# In an image of its own: only the artifact has come over from the agent's sandbox.
if [ -e /verifier-image ] && [ ! -e /app/scratch.txt ] && cmp -s /app/answer.txt /tests/expected.txt; then
    echo 1
else
    echo 0
fi > /logs/verifier/reward.txt
