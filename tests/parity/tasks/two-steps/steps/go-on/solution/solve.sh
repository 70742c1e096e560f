#!/bin/bash
echo line >> list.txt
