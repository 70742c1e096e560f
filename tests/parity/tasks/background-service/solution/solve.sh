#!/bin/bash
cd /app/site
nohup python3 -m http.server 8043 --bind 127.0.0.1 > /tmp/server.log 2>&1 &
for _ in $(seq 50); do
  python3 -c 'import socket; socket.create_connection(("127.0.0.1", 8043), 1)' 2> /dev/null && exit 0
  sleep 0.1
done
exit 1
