#!/bin/bash
printf 'one line\nand another\n' > poem.txt
