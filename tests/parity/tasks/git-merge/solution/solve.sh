#!/bin/bash
set -e
cd /app/repo
git merge --no-ff -m "merge feature" feature
