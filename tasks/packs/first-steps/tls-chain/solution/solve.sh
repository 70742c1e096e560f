#!/bin/bash
set -eu
umask 077
mkdir -p /app/pki
cd /app/pki
cat > /tmp/extensions.cnf <<'CNF'
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[intermediate]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CNF
names=$(sed 's/ /:/' /app/names.txt | paste -sd,)
echo "subjectAltName = $names" >> /tmp/extensions.cnf

for who in root intermediate server; do
    openssl ecparam -name prime256v1 -genkey -noout -out $who.key
done
issue() { # who, common name, days, then the signing options
    openssl req -new -key "$1.key" -subj "/CN=$2" -out "/tmp/$1.csr"
    openssl x509 -req -in "/tmp/$1.csr" -out "$1.crt" -days "$3" -sha256 \
        -extfile /tmp/extensions.cnf -extensions "$1" "${@:4}"
}
issue root "Harbour Root" 3650 -signkey root.key
issue intermediate "Harbour Intermediate" 730 -CA root.crt -CAkey root.key -CAcreateserial
issue server db.internal 60 -CA intermediate.crt -CAkey intermediate.key -CAcreateserial
cat server.crt intermediate.crt > fullchain.crt
rm -f ./*.srl
openssl verify -x509_strict -CAfile root.crt -untrusted intermediate.crt server.crt
