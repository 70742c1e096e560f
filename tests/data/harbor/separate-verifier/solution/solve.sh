#!/bin/bash
echo 5050 > /app/answer.txt
echo "not handed over" > /app/scratch.txt
