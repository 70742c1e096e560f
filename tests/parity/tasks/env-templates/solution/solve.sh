#!/bin/bash
[ "$OF_THE_SOLUTION" = yes ] && printf '%s\n' "$GREETING" > greeting.txt
