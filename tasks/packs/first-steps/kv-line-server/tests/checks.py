"""Starts server.py on a free port for each test, talks to it as several clients, and stops it."""

import contextlib
import signal
import socket
import subprocess
import threading
import time

import grading


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server():
    """(process, port) of a server that accepts connections; it is gone afterwards."""
    port = free_port()
    process = subprocess.Popen(
        ["python3", "/app/server.py", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=grading.CLEAN_ENV,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 8
        while True:
            assert process.poll() is None, f"the server ended with status {process.returncode}"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the server accepts no connections"
                time.sleep(0.01)
        yield process, port
    finally:
        grading.kill_group(process)


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        return self.file.readline().decode()

    def ask(self, text):
        self.send(text.encode() + b"\n")
        return self.line()

    def close(self):
        self.file.close()
        self.socket.close()


def talk(client, *exchanges):
    for sent, want in exchanges:
        got = client.ask(sent)
        assert got == want + "\n", f"{sent[:60]!r}: expected {want[:60]!r}, got {got[:60]!r}"


def test_commands():
    with server() as (_, port):
        client = Client(port)
        talk(
            client,
            ("COUNT", "VALUE 0"), ("GET a", "NONE"), ("SET a 1  two ", "OK"),
            ("GET a", "VALUE 1  two "), ("SET a \u00e9t\u00e9", "OK"), ("GET a", "VALUE \u00e9t\u00e9"),
            ("COUNT", "VALUE 1"), ("DEL a", "OK"), ("DEL a", "NONE"), ("GET a", "NONE"),
            ("INCR n", "VALUE 1"), ("INCR n", "VALUE 2"), ("SET n -5", "OK"), ("INCR n", "VALUE -4"),
            ("SET w word", "OK"), ("INCR w", "ERROR"), ("GET w", "VALUE word"), ("COUNT", "VALUE 2"),
        )
        client.close()


def test_malformed_lines_are_errors_and_the_connection_stays():
    with server() as (_, port):
        client = Client(port)
        bad = ("", "FLY", "GET", "GET a b", "SET", "SET a", "SET a ", "get a", "DEL", "INCR", "COUNT x")
        talk(client, *((line, "ERROR") for line in bad), ("COUNT", "VALUE 0"))
        client.close()


def test_carriage_returns_are_ignored():
    with server() as (_, port):
        client = Client(port)
        talk(client, ("SET k v\r", "OK"), ("GET k\r", "VALUE v"), ("GET k", "VALUE v"))
        client.close()


def test_quit_closes_the_connection_only():
    with server() as (_, port):
        first, second = Client(port), Client(port)
        talk(first, ("SET k v", "OK"), ("QUIT", "BYE"))
        assert first.line() == "", "the connection is still open after QUIT"
        talk(second, ("GET k", "VALUE v"))
        first.close()
        second.close()


def test_several_commands_in_one_packet():
    with server() as (_, port):
        client = Client(port)
        client.send(b"".join(b"INCR n\n" for _ in range(500)) + b"GET n\nQUIT\n")
        lines = [client.line() for _ in range(502)]
        assert lines[:500] == [f"VALUE {n}\n" for n in range(1, 501)]
        assert lines[500:] == ["VALUE 500\n", "BYE\n"]
        client.close()


def test_one_command_in_many_packets():
    with server() as (_, port):
        client = Client(port)
        for byte in "SET k \u00fcber\nGET k\n".encode():
            client.send(bytes([byte]))
        assert [client.line(), client.line()] == ["OK\n", "VALUE \u00fcber\n"]
        client.close()


def test_silent_and_half_way_clients_hold_up_nobody():
    with server() as (_, port):
        idle = [Client(port) for _ in range(20)]
        for client in idle[::2]:
            client.send(b"SET half")
        busy = Client(port)
        talk(busy, ("SET k v", "OK"), ("GET k", "VALUE v"))
        for client in (*idle, busy):
            client.close()


def test_half_a_line_is_not_carried_out():
    with server() as (_, port):
        gone = Client(port)
        talk(gone, ("SET k old", "OK"))
        gone.send(b"SET k new")
        gone.close()
        after = Client(port)
        # Several rounds: by the last one the server has surely seen the other end close.
        talk(after, *(("GET k", "VALUE old") for _ in range(20)))
        after.close()


def test_long_values():
    with server() as (_, port):
        client = Client(port)
        value = "0123456789" * 9900
        talk(client, (f"SET long {value}", "OK"), ("GET long", f"VALUE {value}"))
        client.close()


def test_increments_of_many_clients_add_up():
    with server() as (_, port):
        problems = []

        def work():
            try:
                client = Client(port)
                for _ in range(100):
                    client.ask("INCR n")
                client.close()
            except OSError as error:
                problems.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems, problems
        client = Client(port)
        talk(client, ("GET n", "VALUE 800"))
        client.close()


def test_sigterm_ends_it_with_open_connections():
    with server() as (process, port):
        client = Client(port)
        talk(client, ("SET k v", "OK"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=2) == 0, f"exit status {process.returncode}"
        client.close()


grading.main(globals(), needs="/app/server.py", as_json=True)
