#!/bin/bash
head -c 6000000 /dev/zero | tr '\0' x | fold -w 100
printf 'not UTF-8: \377\376\200\n'
if [ "$(cat volume.txt)" = loud ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
