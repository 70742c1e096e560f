#!/bin/bash
cat /app/more.txt >> /app/words.txt
wc -l < /app/words.txt > /app/total.txt
