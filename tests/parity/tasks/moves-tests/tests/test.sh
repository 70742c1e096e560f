#!/bin/bash
mv /tests /tmp/elsewhere || exit
[ "$(cat here.txt)" = "$(cat /tmp/elsewhere/expected.txt)" ] && reward=1
mv /tmp/elsewhere /tests || exit
echo ${reward:-0} > /logs/verifier/reward.txt
