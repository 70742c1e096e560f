#!/bin/bash
# Bisects with a script that skips what does not run, then reverts; the helper that later code uses stays, repaired.
set -eu
cd /app/repo
export GIT_AUTHOR_NAME=solver GIT_AUTHOR_EMAIL=solver@example.invalid
export GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL
export PYTHONDONTWRITEBYTECODE=1
cat > /tmp/probe.sh <<'SH'
answer=$(python3 tally.py median 9 10 11 2> /dev/null) || exit 125
[ "$answer" = 10 ]
SH
git bisect start main v1.0
git bisect run sh /tmp/probe.sh
git rev-parse refs/bisect/bad > /app/culprit.txt
git bisect reset
git checkout -q main
culprit=$(cat /app/culprit.txt)

git revert --no-commit "$culprit" || true
git checkout -q HEAD -- figures.py
sed -i 's/sorted(values, key=str)/sorted(values)/; s/The values in order, .*/The values in order."""/' figures.py
git revert --quit
git commit -q -a -m "Order values as numbers again

This undoes what commit $culprit did to the order of values;
its helper stays, because trimmed and gap use it."
git status --short
python3 tally.py median 9 10 11
