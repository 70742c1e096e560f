#!/bin/bash
echo "still here" > here.txt
