"""The shell programs of Harbor's verifier: bring the tests, run them, look at what they left.

Rule: each process a program does without is time saved, so where bash is there its builtins do
what another shell needs `find` and `tar` for; both ways say the same. Nothing here starts anything.

What they print: `headrace-brought` once the tests lie there, `headrace-ran` once they have ended;
then for each file that is looked for and there, a line `KIND PATH`: `empty`, `text` (its bytes
follow, up to a NUL), `file` (elsewhere) or `other`; then `--` and the other small files as a tar
archive. On stderr, after `headrace-log`, the end of a log that is not short.
"""

from typing import Final

LOG_BYTES: Final = 1 << 20
"""Of the end of the verifier's output: read for outcomes."""
LOG_BLOCKS: Final = 16384
"""Of at most 4096 bytes each, from the start of the output; then `LOG_BYTES` of its end."""
LINGER_S: Final = 1
SMALL_KB: Final = 128
"""Files below it come with the inspection; a larger one is read by itself."""
_SHORT_CHARS = 256
"""Bash reads a file up to a NUL byte by byte."""

LOG: Final = "/logs/verifier/test-stdout.txt"
JSON: Final = "/logs/verifier/reward.json"
TXT: Final = "/logs/verifier/reward.txt"
REPORTS: Final = (
    "/logs/verifier/ctrf.json",
    "/logs/verifier/ctrf-report.json",
    "/tests/ctrf.json",
    "/tests/ctrf-report.json",
)
BROUGHT: Final = b"headrace-brought\n"
WINDOWS: Final = b"headrace-windows\n"
RAN: Final = b"headrace-ran\n"
NOT_ROOT: Final = b"headrace-not-root\n"
LOG_FOLLOWS: Final = b"headrace-log\n"


def _say(mark: bytes) -> str:
    return f"echo {mark.decode().strip()}"


_PREPARE = f"""\
cd / && umask 000
v=/logs/verifier
if [ -d $v ] && [ ! -L $v ]; then chmod 777 /logs $v
elif [ -e $v ] || [ -L $v ]; then rm -rf $v; fi
for f in @WIPE@ {JSON} {TXT} {LOG} {" ".join(REPORTS)}; do
  if [ -e $f ] || [ -L $f ]; then rm -rf $f; fi
done
mkdir -p /logs/verifier /tests && umask 022 && command -v tar > /dev/null && @TAKE@
[ -x /tests/test.sh ] || chmod +x /tests/test.sh || exit
IFS= read -r l < /tests/test.sh
case $l in *"\r")
  sed -i "s/\r\\$//" /tests/test.sh && {_say(WINDOWS)};;
esac
{_say(BROUGHT)}
"""
BRING: Final = _PREPARE.replace("@WIPE@", "/tests").replace(
    "@TAKE@", "tar -x -o -f - -C /tests || exit"
)
"""Reads the tests as a tar archive from stdin."""
HAS: Final = _PREPARE.replace("@WIPE@ ", "").replace("@TAKE@", "true")
"""Where the verifier's own image holds the tests."""

RUN: Final = f"""\
IFS= read -r l < /tests/test.sh
case $l in
  "#!"*|?ELF*) ;;
  *) set -- "$(command -v bash || echo sh)" ;;
esac
case ${{BASH_VERSION:-}} in
''|[123].*|4.[0-3].*) ("$@" /tests/test.sh) > {LOG} 2>&1 ;;
*) eval 'exec 5< <( "$@" /tests/test.sh 2>&1 )
  t=$!
  exec 4< <( {{
    dd bs=4096 count={LOG_BLOCKS} 2> /dev/null
    if IFS= read -r -d "" -n 1 x; then
      if [ -n "$x" ]; then printf %s "$x"; else printf "\\0"; fi
      tail -c {LOG_BYTES}
    fi
  }} <&5 > {LOG} )
  exec 5<&-
  wait "$t"
  read -t {LINGER_S} -u 4' ;;
esac
{_say(RAN)}
"""
"""By itself, or by a shell when it does not say which one. The log's writer ends with the tests, or
later where something of theirs goes on and may print; nobody waits for that longer than a moment.
"""
INSPECT: Final = f"""\
set --
d=
for f in {JSON} {TXT} {" ".join(REPORTS)} {LOG}; do
  x=
  if [ ! -f $f ]; then
    if [ -e $f ] || [ -L $f ]; then echo other $f; fi
  elif [ -L $f ]; then echo file $f
  elif [ ! -s $f ]; then echo empty $f; d="$d $f"
  elif [ -n "${{BASH_VERSION:-}}" ] && [ -r $f ] &&
    ! IFS= read -r -d "" -n {_SHORT_CHARS} x < $f && [ -n "$x" ]; then
    printf "text %s\\n%s\\0" $f "$x"; d="$d $f"
  else
    echo file $f
    [ $f = {LOG} ] || set -- "$@" $f
  fi
done
echo --
[ $# -eq 0 ] || set -- $(find "$@" -size -{SMALL_KB}k)
[ $# -eq 0 ] || tar -c -f - "$@" 2> /dev/null
case $d in
*{LOG}*) ;;
*) [ ! -f {LOG} ] || {{ {_say(LOG_FOLLOWS)}; tail -c {LOG_BYTES} {LOG}; }} >&2 ;;
esac
"""
SETTLE: Final = f"""\
n=0
while [ -f {LOG} ] && [ ! -s {LOG} ] && [ $n -lt 10 ]; do sleep 0.1; n=$((n + 1)); done
"""
"""Where the tests' own shell was killed, the log's writer may be a moment behind."""


def together(bring: str, settings: str) -> str:
    """All in one request, where the tests' user is root; else it says so and does nothing.

    `settings`: what the tests are started under, which nothing of ours is.
    """
    return (
        f'[ "${{EUID:-}}" = 0 ] || {{ {_say(NOT_ROOT)}; exit 0; }}\n'
        f"(\n{bring}) || exit\nexec < /dev/null\n{settings}{RUN}{INSPECT}"
    )
