#!/bin/bash
. /tests/reward.sh
right() { [ "$WANTED" = words ] && [ "$(cat /app/words.txt)" = $'one\ntwo\nthree' ]; }
grade right
