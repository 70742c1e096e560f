#!/bin/bash
echo 0.1 > /logs/verifier/reward.txt
echo honest > work.txt
