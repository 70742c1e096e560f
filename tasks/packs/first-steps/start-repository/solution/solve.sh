#!/bin/bash
set -eu
git init /app/project
