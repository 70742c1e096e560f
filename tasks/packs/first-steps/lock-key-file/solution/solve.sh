#!/bin/bash
set -eu
chmod 400 /app/backup.key
