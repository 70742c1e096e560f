#!/bin/bash
date > /shared/mine.txt
