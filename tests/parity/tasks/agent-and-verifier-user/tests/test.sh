#!/bin/bash
owner=$(stat -c %U /shared/mine.txt 2> /dev/null || echo nobody-made-it)
me=$(id -un)
printf '{"reward": %d, "owner": %d, "grader": %d}\n' \
  $([ "$owner $me" = "worker grader" ] && echo 1 || echo 0) \
  $([ "$owner" = worker ] && echo 1 || echo 0) \
  $([ "$me" = grader ] && echo 1 || echo 0) > /logs/verifier/reward.json
