#!/bin/bash
if curl -fs -m 10 -o /dev/null http://forbidden.example.net/; then echo yes; else echo no; fi > /app/reached.txt
