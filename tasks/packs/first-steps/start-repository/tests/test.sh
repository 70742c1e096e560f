#!/bin/bash
# Passes when /app/project is a working repository without commits: a copy of it takes a commit.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tests LC_ALL=C
export GIT_CONFIG_NOSYSTEM=1 GIT_CEILING_DIRECTORIES=/app:/tests
mkdir -p /logs/verifier

graded() {
    echo "$2"
    echo "$1" > /logs/verifier/reward.txt
    exit 0
}

cmp -s /tests/README.txt /app/project/README.txt || graded 0 "README.txt is gone or changed"
[ -d /app/project/.git ] || graded 0 "/app/project has no .git directory"
rm -rf /tests/copy
cp -R /app/project /tests/copy
rm -rf /tests/copy/.git/hooks
cd /tests/copy || graded 0 "the directory cannot be copied"
[ "$(git rev-parse --show-toplevel)" = /tests/copy ] || graded 0 "not a repository with a work tree"
[ -z "$(git rev-list --all)" ] || graded 0 "there are commits already"
git add README.txt || graded 0 "git add fails"
git -c user.name=grader -c user.email=grader@example.invalid commit -q -m first \
    || graded 0 "git commit fails"
[ "$(git ls-tree --name-only HEAD)" = README.txt ] || graded 0 "the commit lacks README.txt"
graded 1 "the repository works"
