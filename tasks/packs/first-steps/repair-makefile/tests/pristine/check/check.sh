# Run as: sh check/check.sh PROGRAM. Exits with 1 if the program computes something else.
want="mean 4.000
deviation 2.000
geometric 3.464"
got=$("$1" 2 6)
if [ "$got" != "$want" ]; then
    echo "check: expected:"; echo "$want"; echo "check: got:"; echo "$got"
    exit 1
fi
echo "check: ok"
