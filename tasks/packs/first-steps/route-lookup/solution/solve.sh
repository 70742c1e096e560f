#!/bin/bash
# One dictionary per address family and prefix length; a lookup tries the lengths, longest first.
set -eu
cat > /app/route.py <<'PY'
import ipaddress
import sys

best = {4: {}, 6: {}}  # version -> length -> network as a number -> (metric, next hop)
with open(sys.argv[1]) as table:
    for line in table:
        fields = line.split("#")[0].split()
        if not fields:
            continue
        network = ipaddress.ip_network(fields[0], strict=False)
        metric = int(fields[2]) if len(fields) > 2 else 0
        routes = best[network.version].setdefault(network.prefixlen, {})
        key = int(network.network_address)
        if key not in routes or metric < routes[key][0]:
            routes[key] = (metric, fields[1])

lengths = {version: sorted(routes, reverse=True) for version, routes in best.items()}


def next_hop(text):
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "invalid"
    number, bits = int(address), address.max_prefixlen
    for length in lengths[address.version]:
        key = number >> (bits - length) << (bits - length)
        if key in best[address.version][length]:
            return best[address.version][length][key][1]
    return "unreachable"


for line in sys.stdin:
    print(next_hop(line.strip()))
PY
printf '10.1.9.9\n10.1.2.3\n' | python3 /app/route.py /app/routes.txt
