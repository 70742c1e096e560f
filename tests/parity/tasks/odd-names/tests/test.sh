#!/bin/bash
reward=0
cmp "grüße an alle.txt" "/tests/expected - für alle.txt" &&
  [ -e /tests/.hidden ] && [ -e "/tests/-a folder/'quoted' \$name.txt" ] && reward=1
echo $reward > /logs/verifier/reward.txt
