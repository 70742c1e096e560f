#!/bin/bash
if [ -e second.txt ]; then echo 1; elif [ -e first.txt ]; then echo 0.5; else echo 0; fi \
  > /logs/verifier/reward.txt
