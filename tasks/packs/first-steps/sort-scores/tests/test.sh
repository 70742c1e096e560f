#!/bin/bash
# Passes when sorted.txt holds the original numbers in numeric order; the sorting is done anew here.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
mkdir -p /logs/verifier

graded() {
    echo "$2"
    echo "$1" > /logs/verifier/reward.txt
    exit 0
}

cmp -s /tests/scores.txt /app/scores.txt || graded 0 "scores.txt is gone or changed"
[ -s /app/sorted.txt ] || graded 0 "sorted.txt is missing or empty"
sort -n /tests/scores.txt | cmp - /app/sorted.txt || graded 0 "sorted.txt differs"
graded 1 "sorted.txt is right"
