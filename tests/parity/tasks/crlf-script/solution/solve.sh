#!/bin/bash
echo unix > ends.txt
