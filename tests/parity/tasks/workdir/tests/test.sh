#!/bin/bash
echo "in $PWD"
if [ "$PWD" = "/srv/data store" ] && [ "$(cat where.txt)" = "/srv/data store" ]
then echo 1; else echo 0; fi > /logs/verifier/reward.txt
