#!/bin/bash
set -eu
gcc -o /app/hello /app/hello.c
