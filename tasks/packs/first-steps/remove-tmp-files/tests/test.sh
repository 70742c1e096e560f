#!/bin/bash
# Passes when /app/cache holds exactly the files that were to stay, unchanged.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /logs/verifier

graded() {
    echo "$2"
    echo "$1" > /logs/verifier/reward.txt
    exit 0
}

[ -d /app/cache ] && [ ! -L /app/cache ] || graded 0 "/app/cache is gone"
diff -r /tests/expected /app/cache || graded 0 "/app/cache is not as it should be"
graded 1 "only the .tmp files are gone"
