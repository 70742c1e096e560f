#!/bin/bash
# Runs in the working directory, after this folder's files have been put there.
tr a-z A-Z < more.txt > /tmp/upper && mv /tmp/upper more.txt
