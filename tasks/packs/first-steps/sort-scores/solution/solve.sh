#!/bin/bash
set -eu
sort -n /app/scores.txt > /app/sorted.txt
