#!/bin/bash
echo "EXPECTED=$EXPECTED LITERAL=$LITERAL PLAIN=$PLAIN"
reward=0
[ "$(cat greeting.txt)" = "$EXPECTED" ] && reward=0.5
[ "$reward" = 0.5 ] && [ "$LITERAL" = 'a ${PARTIAL} b' ] && [ "$PLAIN" = 'x = "y"' ] && reward=1
echo $reward > /logs/verifier/reward.txt
