#!/bin/bash
touch first.txt
sleep 3600
touch second.txt
