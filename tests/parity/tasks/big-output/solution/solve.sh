#!/bin/bash
head -c 3000000 /dev/zero | tr '\0' y | fold -w 100
echo loud > volume.txt
