#!/bin/bash
curl -fs http://store:8000/word > /app/answer.txt
