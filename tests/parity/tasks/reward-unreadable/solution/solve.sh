#!/bin/bash
echo nan > mark.txt
