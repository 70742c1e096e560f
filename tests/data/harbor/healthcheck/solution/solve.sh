#!/bin/bash
wc -l < /tmp/checks > /app/checks.txt
