#!/bin/bash
if [ "$(cat /app/reached.txt)" = no ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
