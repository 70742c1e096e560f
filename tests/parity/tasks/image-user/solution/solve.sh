#!/bin/bash
id -un > ~/me.txt
