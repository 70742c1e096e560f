#!/bin/bash
. /tests/reward.sh
right() {
    [ "$WANTED" = total ] && [ "$(cat /app/total.txt)" = 5 ] && [ "$(tail -n 1 /app/words.txt)" = FIVE ]
}
grade right
