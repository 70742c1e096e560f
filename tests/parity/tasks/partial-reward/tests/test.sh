#!/bin/bash
n=0
for f in a b c d; do [ -e $f.txt ] && n=$((n + 25)); done
case $n in 100) echo ' 1.0 ';; *) echo "0.$n";; esac > /logs/verifier/reward.txt
