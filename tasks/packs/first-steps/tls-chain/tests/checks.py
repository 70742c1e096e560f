"""Verifies the chain, shakes hands with it, and tries what its limits must prevent."""

import functools
import os
import re
import shutil
import socket
import ssl
import stat
import threading
import time

import grading

PKI = "/app/pki"
WORK = "/tmp/tls-grading"
KINDS = ("root", "intermediate", "server")
COMMON_NAMES = {
    "root": "Harbour Root", "intermediate": "Harbour Intermediate", "server": "db.internal",
}
DAY_S = 86400
PEM = r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----"


def openssl(*arguments, cwd=PKI):
    return grading.output(["openssl", *arguments], cwd=cwd)


@functools.cache
def certificate(kind):
    """What openssl says of a certificate, public key, names, dates and extensions."""
    wanted = ("-text", "-pubkey", "-subject", "-issuer", "-startdate", "-enddate")
    return openssl("x509", "-in", f"{kind}.crt", "-noout", "-nameopt", "multiline", *wanted)


def extension(kind, name):
    """(critical, value) of an extension as openssl prints it."""
    match = re.search(rf"X509v3 {name}:( critical)?\s*\n\s+(.*)\n", certificate(kind))
    assert match, f"{kind}.crt has no {name}"
    return bool(match[1]), match[2].strip()


def days_left(kind):
    def at(name):
        date = re.search(rf"^{name}=(.*)$", certificate(kind), re.M)[1]
        return ssl.cert_time_to_seconds(date)

    assert at("notBefore") <= time.time(), f"{kind}.crt is not valid yet"
    return (at("notAfter") - time.time()) / DAY_S


def verifies(target, untrusted, *options):
    command = ["openssl", "verify", "-CAfile", f"{PKI}/root.crt", *options]
    for path in untrusted:
        command += ["-untrusted", path]
    status, _, _ = grading.run([*command, target], cwd=PKI)
    return status == 0


def handshake(host):
    """True if a client that trusts the root only accepts the server under this name."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(f"{PKI}/fullchain.crt", f"{PKI}/server.key")
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.load_verify_locations(f"{PKI}/root.crt")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)

    def serve():
        try:
            connection, _ = listener.accept()
            connection.settimeout(5)
            with server_context.wrap_socket(connection, server_side=True) as tls:
                tls.sendall(b"welcome")
        except OSError:
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with socket.create_connection(listener.getsockname(), timeout=5) as plain:
            with client_context.wrap_socket(plain, server_hostname=host) as tls:
                return tls.recv(7) == b"welcome"
    except ssl.SSLCertVerificationError:
        return False
    finally:
        thread.join()
        listener.close()


@functools.cache
def request(name):
    """A fresh key and a signing request for it."""
    os.makedirs(WORK, exist_ok=True)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout")
    openssl("req", "-new", *key, f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr",
            cwd=WORK)


def sign(name, issuer, issuer_key, extensions):
    """Path of a certificate for `name`, signed with the issuer's key whether it may or not."""
    request(name)
    with open(f"{WORK}/{name}.cnf", "w") as file:
        file.write(f"[e]\n{extensions}\n")
    path = f"{WORK}/{name}-by-{os.path.basename(issuer)}"
    openssl("x509", "-req", "-in", f"{name}.csr", "-CA", issuer, "-CAkey", issuer_key,
            "-set_serial", "7", "-days", "5", "-extfile", f"{name}.cnf", "-extensions", "e",
            "-out", path, cwd=WORK)
    return path


def test_the_chain_verifies_strictly():
    assert verifies("server.crt", ["intermediate.crt"], "-x509_strict", "-purpose", "sslserver")
    assert not verifies("server.crt", []), "the server is signed by the root itself"


def test_a_client_accepts_every_name():
    for host in ("db.internal", "reader.db.internal", "127.0.0.1"):
        assert handshake(host), f"refused as {host}"


def test_a_client_refuses_other_names():
    assert handshake("db.internal")
    for host in ("internal", "a.b.db.internal", "127.0.0.2"):
        assert not handshake(host), f"accepted as {host}"


def test_the_names_are_exactly_those_of_the_list():
    _, value = extension("server", "Subject Alternative Name")
    names = sorted(part.strip() for part in value.split(","))
    assert names == ["DNS:*.db.internal", "DNS:db.internal", "IP Address:127.0.0.1"], names


def test_keys_belong_to_their_certificates():
    seen = set()
    for kind in KINDS:
        text = openssl("pkey", "-in", f"{kind}.key", "-passin", "pass:", "-pubout", "-text")
        public = re.search(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", text, re.S)[0]
        assert public in certificate(kind), f"{kind}.key is not the key of {kind}.crt"
        assert "prime256v1" in text, f"{kind}.key is not on P-256"
        mode = stat.S_IMODE(os.stat(f"{PKI}/{kind}.key").st_mode)
        assert mode == 0o600, f"{kind}.key has mode {mode:o}"
        seen.add(public)
    assert len(seen) == len(KINDS), "keys are shared"


def test_subjects_and_issuers():
    for kind, issuer in (("root", "root"), ("intermediate", "root"), ("server", "intermediate")):
        for field, owner in (("subject", kind), ("issuer", issuer)):
            block = re.search(rf"^{field}=\s*\n((?: .*\n)+)", certificate(kind), re.M)
            names = re.findall(r"commonName\s*=\s*(.*)", block[1]) if block else []
            assert names == [COMMON_NAMES[owner]], f"{kind}: {field} {names}"


def test_validity():
    assert days_left("root") > 5 * 365 - 1
    assert days_left("intermediate") > 365 - 1
    assert 29 < days_left("server") < 90.01


def test_extensions():
    for kind in ("root", "intermediate"):
        critical, value = extension(kind, "Basic Constraints")
        assert critical and value.startswith("CA:TRUE"), f"{kind}: {value}"
        critical, value = extension(kind, "Key Usage")
        assert critical and "Certificate Sign" in value, f"{kind}: {value}"
    assert extension("server", "Basic Constraints")[1] == "CA:FALSE"
    assert extension("server", "Extended Key Usage")[1] == "TLS Web Server Authentication"
    for kind in KINDS:
        extension(kind, "Subject Key Identifier")
    for kind in ("intermediate", "server"):
        extension(kind, "Authority Key Identifier")


def test_the_intermediate_signs_servers_but_no_authorities():
    issuer, key = f"{PKI}/intermediate.crt", f"{PKI}/intermediate.key"
    leaf = "basicConstraints=CA:FALSE"
    assert verifies(sign("leaf", issuer, key, leaf), [issuer])
    authority = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign"
    below = sign("below", issuer, key, authority)
    assert not verifies(sign("leaf", below, "below.key", leaf), [issuer, below])


def test_the_server_is_no_authority():
    rogue = sign("leaf", f"{PKI}/server.crt", f"{PKI}/server.key", "basicConstraints=CA:FALSE")
    assert not verifies(rogue, ["server.crt", "intermediate.crt"])


def test_the_full_chain_is_server_then_intermediate():
    def ders(name):
        with open(f"{PKI}/{name}") as file:
            return [ssl.PEM_cert_to_DER_cert(pem) for pem in re.findall(PEM, file.read(), re.S)]

    found = ders("fullchain.crt")
    assert found == ders("server.crt") + ders("intermediate.crt"), f"{len(found)} certificates"


shutil.rmtree(WORK, ignore_errors=True)
grading.main(globals(), needs=f"{PKI}/fullchain.crt")
