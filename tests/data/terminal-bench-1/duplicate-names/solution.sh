#!/bin/bash
touch first.txt
