#!/bin/bash
set -eu
rm /app/cache/*.tmp
