#!/bin/bash
echo 'export GREETING=hello' >> ~/.bashrc
