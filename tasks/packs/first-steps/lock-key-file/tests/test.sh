#!/bin/bash
# Passes when the key file has mode 400 and its old content.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /logs/verifier

graded() {
    echo "$2"
    echo "$1" > /logs/verifier/reward.txt
    exit 0
}

kind=$(stat -c %F /app/backup.key) || graded 0 "backup.key is missing"
[ "$kind" = "regular file" ] || graded 0 "backup.key is a $kind"
mode=$(stat -c %a /app/backup.key)
[ "$mode" = 400 ] || graded 0 "backup.key has mode $mode"
cmp -s /tests/backup.key /app/backup.key || graded 0 "the content changed"
graded 1 "backup.key is locked"
