#!/bin/bash
: > /logs/verifier/reward.txt
grep -q . result.txt && echo 1 > /logs/verifier/reward.txt
