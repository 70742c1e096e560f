#!/bin/bash
touch mine.txt
