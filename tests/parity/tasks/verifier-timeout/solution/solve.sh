#!/bin/bash
touch quick.txt
