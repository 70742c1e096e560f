#!/bin/bash
printf 'one\ntwo\nthree\n' > /app/words.txt
