#!/bin/bash
if [ "$(cat ends.txt)" = unix ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
