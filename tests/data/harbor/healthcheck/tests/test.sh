#!/bin/bash
# Healthy at the third check, and not asked again.
if [ "$(cat /app/checks.txt)" = 3 ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
