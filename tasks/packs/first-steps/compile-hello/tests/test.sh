#!/bin/bash
# Passes when /app/hello is an ELF executable that greets whoever it is told to.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /logs/verifier

graded() {
    echo "$2"
    echo "$1" > /logs/verifier/reward.txt
    exit 0
}

cmp -s /tests/hello.c /app/hello.c || graded 0 "hello.c is gone or changed"
[ -x /app/hello ] || graded 0 "/app/hello is missing or not executable"
[ "$(head -c 4 /app/hello | od -An -tx1 | tr -d ' ')" = 7f454c46 ] || graded 0 "not an ELF file"
for name in Grace "Mary Shelley" x; do
    said=$(timeout 5 /app/hello "$name" < /dev/null) || graded 0 "failed for $name"
    [ "$said" = "Hello, $name!" ] || graded 0 "wrong greeting for $name: $said"
done
[ "$(timeout 5 /app/hello < /dev/null)" = "Hello, world!" ] || graded 0 "wrong without a name"
graded 1 "hello is compiled and works"
