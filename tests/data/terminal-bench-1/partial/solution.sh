#!/bin/bash
echo 2 > two.txt
