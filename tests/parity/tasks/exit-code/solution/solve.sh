#!/bin/bash
echo ok > ok.txt
exit 7
