#!/bin/bash
if [ "$(id -un)" = grader ] && [ "$(stat -c %U /app/who.txt)" = worker ] && [ "$(cat /app/who.txt)" = worker ]; then
    echo 1
else
    echo 0
fi > /logs/verifier/reward.txt
