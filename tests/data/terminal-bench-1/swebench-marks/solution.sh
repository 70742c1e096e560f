#!/bin/bash
touch fixed.txt
