#!/bin/bash
echo "a line" > result.txt
