#!/bin/bash
lines=$(cat poem.txt 2> /dev/null | wc -l)
if [ "$lines" -ge 2 ]; then
  echo '{"lines": 1, "rhyme": 0.25, "spelling": true}'
else
  echo "{\"lines\": 0.$lines, \"rhyme\": 0, \"spelling\": false}"
fi > /logs/verifier/reward.json
