#!/bin/bash
touch list.txt
