#!/bin/bash
touch answer.txt
