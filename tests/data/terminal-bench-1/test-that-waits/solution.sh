#!/bin/bash
touch go.txt
