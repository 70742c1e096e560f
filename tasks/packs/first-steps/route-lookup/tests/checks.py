"""Asks route.py about tables of its own and compares with a search in strings of bits."""

import ipaddress
import random

import grading


def bits(address):
    return format(int(address), f"0{address.max_prefixlen}b")


def expected(routes, text):
    """routes: (destination, next hop, metric) in the order of the table."""
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        return "invalid"
    own = bits(address)
    found = []
    for position, (destination, hop, metric) in enumerate(routes):
        host, length = destination.split("/")
        there = ipaddress.ip_address(host)
        if there.version == address.version and own.startswith(bits(there)[: int(length)]):
            found.append((-int(length), metric, position, hop))
    return min(found)[3] if found else "unreachable"


def answers(name, table, questions, timeout_s=5.0):
    path = f"/tmp/{name}"
    with open(path, "w") as file:
        file.write(table)
    out = grading.output(
        ["python3", "/app/route.py", path], "".join(f"{q}\n" for q in questions), timeout_s
    )
    got = [line.strip() for line in out.split("\n")]
    assert got[-1] == "" and len(got) == len(questions) + 1, "one line per question expected"
    return got[:-1]


def expect(name, routes, questions):
    table = "".join(f"{d} {hop} {metric}\n" for d, hop, metric in routes)
    for question, got in zip(questions, answers(name, table, questions), strict=True):
        want = expected(routes, question)
        assert got == want, f"{question!r}: expected {want}, got {got}"


def random_address(random_):
    """Few different leading bits, so that prefixes nest."""
    if random_.random() < 0.6:
        top = random_.choice((10, 10, 172, 192)) << 24 | random_.choice((0, 1, 16)) << 16
        return ipaddress.IPv4Address(top | random_.getrandbits(16))
    top = 0x20010DB8 << 96 | random_.getrandbits(3) << 80
    return ipaddress.IPv6Address(top | random_.getrandbits(20) << 60)


def random_routes(random_, count):
    routes = []
    for number in range(count):
        address = random_address(random_)
        length = random_.randint(8, address.max_prefixlen)
        routes.append((f"{address}/{length}", f"hop{number}", random_.randint(0, 3)))
    return routes


def test_the_longest_prefix_wins():
    routes = [
        ("10.0.0.0/8", "a", 0), ("10.1.0.0/16", "b", 9), ("10.1.2.0/24", "c", 50),
        ("10.1.2.3/32", "d", 99), ("10.1.2.128/25", "e", 0),
    ]
    asked = ["10.9.9.9", "10.1.9.9", "10.1.2.9", "10.1.2.3", "10.1.2.200", "11.0.0.1"]
    expect("longest", routes, asked)


def test_metric_then_order_break_ties():
    routes = [
        ("10.1.0.0/16", "slow", 20), ("10.1.7.7/16", "first", 10), ("10.1.0.0/16", "second", 10),
        ("10.2.0.0/16", "one", 0), ("10.2.0.0/16", "two", 0),
    ]
    expect("ties", routes, ["10.1.1.1", "10.2.1.1"])


def test_default_routes_keep_to_their_family():
    expect("default", [("0.0.0.0/0", "four", 5)], ["8.8.8.8", "::1"])
    expect("default6", [("::/0", "six", 5)], ["8.8.8.8", "::1", "2001:db8::5"])


def test_comments_blanks_and_a_missing_metric():
    table = "# top\n\n  10.0.0.0/8\t192.0.2.1   # inner\n10.0.0.0/8 192.0.2.2 1\n::/0 fe80::1\n"
    got = answers("comments", table, ["10.1.1.1", " ::5 ", "9.9.9.9"])
    assert got == ["192.0.2.1", "fe80::1", "unreachable"], got


def test_what_is_no_address_is_invalid():
    asked = ["", "hello", "10.0.0.256", "10.0.0", "10.0.0.1/8", "1.2.3.4.5", ":::", "12345::", "1"]
    expect("invalid", [("0.0.0.0/0", "x", 0), ("::/0", "y", 0)], asked)


def test_random_tables():
    random_ = random.Random(8)
    routes = random_routes(random_, 120)
    expect("random", routes, [str(random_address(random_)) for _ in range(300)])


def test_a_large_table_is_answered_in_time():
    random_ = random.Random(9)
    routes = random_routes(random_, 5000)
    asked = [str(random_address(random_)) for _ in range(12000)]
    table = "".join(f"{d} {hop} {metric}\n" for d, hop, metric in routes)
    got = answers("large", table, asked, timeout_s=3.0)
    for index in range(0, 12000, 1500):
        want = expected(routes, asked[index])
        assert got[index] == want, f"{asked[index]}: expected {want}, got {got[index]}"


grading.main(globals(), needs="/app/route.py")
