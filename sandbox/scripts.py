"""The POSIX shell programs that run inside every sandbox.

`AGENT` keeps the agent's shell alive; `CONTROL` carries out our own requests beside it. Both work
in dash, bash and busybox, read their stdin byte by byte and end when it closes. Every frame they
print is `RS hr<token> <fields> RS`; the tokens come over stdin, so that neither argv nor
environment shows them.

The programs themselves are sent over stdin too, so that a process list inside shows one short line
each: `sh -c LOADER` reads a program up to a line `#end` and becomes it.

`AGENT` with arguments USER and WORKDIR reads a session key, then for each line `go KEY` starts one
shell and, when it ends, prints a frame with the key and the exit code on stdout and stderr. Lines
in between are skipped: the unread rest of a dead shell's input is never taken for commands.

`CONTROL` reads a session key, prints a ready frame with it and its process id, and then evaluates
the lines that start with the key.
"""

from collections.abc import Sequence

KEEP_ALIVE = ("sh", "-c", "sleep infinity")
"""What an image's entrypoint is given to run: in both harnesses, not the image's command."""

LOADER = """h=;n='
';while IFS= read -r l;do [ "$l" = '#end' ]&&break;h=$h$l$n;done;eval "$h" """
AGENT = CONTROL = LOADER
"""What a provider starts as `sh -c ...`; `Shell` and `Control` send the program that follows."""


def _packed(program: str) -> str:
    """Without indentation and comment lines: it is read byte by byte."""
    lines = (line.lstrip() for line in program.strip().splitlines())
    return "\n".join(line for line in lines if not line.startswith("#")) + "\n"


_AS = r"""
hr_as() { # USER COMMAND...: become USER with its groups and home, then exec
  hr_user=$1; shift
  case $hr_user in ''|root|0|root:root|0:0) exec "$@" ;; esac
  hr_uid=${hr_user%%:*}; hr_gid=; hr_name=$hr_uid; hr_home=/
  case $hr_user in *:*) hr_gid=${hr_user#*:} ;; esac
  while IFS=: read -r hr_n hr_p hr_u hr_g hr_c hr_h hr_s; do
    if [ "$hr_n" = "$hr_uid" ] || [ "$hr_u" = "$hr_uid" ]; then
      hr_name=$hr_n; hr_uid=$hr_u; hr_gid=${hr_gid:-$hr_g}; hr_home=$hr_h; break
    fi
  done </etc/passwd
  case $hr_gid in *[!0-9]*)
    while IFS=: read -r hr_n hr_p hr_g hr_s; do
      [ "$hr_n" = "$hr_gid" ] && hr_gid=$hr_g
    done </etc/group ;;
  esac
  hr_gid=${hr_gid:-$hr_uid}
  case $hr_uid$hr_gid in *[!0-9]*) echo "headrace: no user $hr_user" >&2; exit 126 ;; esac
  HOME=$hr_home; USER=$hr_name; LOGNAME=$hr_name; export HOME USER LOGNAME
  for hr_groups in --init-groups --clear-groups; do
    if setpriv --reuid "$hr_uid" --regid "$hr_gid" "$hr_groups" true 2>/dev/null; then
      exec setpriv --reuid "$hr_uid" --regid "$hr_gid" "$hr_groups" "$@"
    fi
  done
  exec su -m -s /bin/sh "$hr_name" -c 'exec "$0" "$@"' -- "$@"
}
"""

_KEEP = r"""
hr_go() {
  while IFS= read -r hr_line; do [ "$hr_line" = "go $hr_key" ] && return 0; done
  return 1
}
hr_gone() {
  printf '\036hr%s %s\036' "$hr_key" "$1" >&8
  printf '\036hr%s %s\036' "$hr_key" "$1" >&9
}
hr_keep() { # USER WORKDIR
  while hr_go; do
    (
      cd -- "$2" || cd /
      hash -r # bash may have come or gone since the last shell
      if command -v bash >/dev/null; then
        hr_as "$1" bash --norc --noprofile --noediting -i
      fi
      hr_as "$1" sh -i
    ) 2>&9
    hr_gone "$?"
  done
}
"""

_BESIDE = r"""
hr_beside() { # WORKDIR USER COMMAND...: start it in a session of its own; nobody waits for it
  [ -d "$1" ] || mkdir -p -- "$1"
  cd -- "$1" || cd /
  hr_who=$2; shift 2
  # not by `&` where that can be: what a shell starts so ignores SIGINT, with all its children
  if setsid -f true; then hr_as "$hr_who" setsid -f "$@"; fi
  hr_own=; command -v setsid && hr_own=setsid
  (hr_as "$hr_who" $hr_own "$@") &
}
"""

AGENT_PROGRAM = _packed(
    _AS
    + _KEEP
    + r"""
exec 7</dev/null 8>&1 9>&2 >/dev/null 2>/dev/null
IFS= read -r hr_key || exit 0
[ -z "$2" ] || [ -d "$2" ] || mkdir -p -- "$2"
hr_keep "$1" "${2:-.}"
"""
)

BESIDE = (
    _packed(
        _AS
        + _BESIDE
        + r"""
(shift 2; hr_beside "$@") </dev/null >/dev/null 2>&1
"""
    )
    + LOADER
)
"""`AGENT`, with a program of the task beside it: USER and WORKDIR, then where that starts, whom it
runs as, and its words. It ends with the sandbox; its output is not kept."""


def beside(workdir: str, user: str, words: Sequence[str]) -> tuple[str, ...]:
    """A program of the task as `BESIDE` and `INIT_PROGRAM` take it. No words: there is none."""
    return (workdir, user, *words) if words else ()


def first_process(user: str, beside: Sequence[str] = ()) -> list[str]:
    """What a container runs: the agent's shell in its own folder, and what is `beside` it."""
    return ["sh", "-c", BESIDE if beside else AGENT, "sh", user, "", *beside]


SETUP = r"""exec 2>/dev/null
_hr_end() { set -- "$1" "$?"; read -r _hr </proc/loadavg; printf '\036hr%s %d %d %s %s %s\036' "$1" "$2" "$$" "${!-0}" "${_hr##* }" "" >&8; printf '\036hr%s\036' "$1" >&9; return "$2"; }
if [ -n "$BASH_VERSION" ]; then exec 27<&7 28>&8 29>&9 7<&- 8>&- 9>&-; eval '_hr_end() { builtin set -- "$1" "$?"; builtin local _hr; builtin read -r _hr </proc/loadavg; builtin printf "\036hr%s %d %d %s %s %s\036" "$1" "$2" "$$" "${!-0}" "${_hr##* }" "${BASH_VERSION%%.*}" >&28; builtin printf "\036hr%s\036" "$1" >&29; builtin return "$2"; }'; readonly -f _hr_end; set +o history; set +H; fi
PS1='$ '; PS2='> '
"""  # noqa: E501
"""What a fresh agent shell is told first. In bash our descriptors move out of the range that agents
use (`exec 9>lock; flock 9`); other shells know no number above 9."""

_SCAN = r"""
hr_stat() { # PID: sets hr_state, hr_ppid, hr_start
  hr_s=
  while IFS= read -r hr_l; do hr_s="$hr_s $hr_l"; done <"/proc/$1/stat" || return 1
  set -- ${hr_s##*) }
  [ $# -ge 20 ] || return 1
  hr_state=$1; hr_ppid=$2; hr_start=${20}
}
hr_ours() { # PID...: the processes that carry the channels, with their ancestors
  read -r hr_me hr_x </proc/self/stat
  hr_infra=" 1 $hr_me "
  for hr_p in "$@"; do
    while [ "$hr_p" -gt 1 ]; do
      hr_infra="$hr_infra$hr_p "
      hr_stat "$hr_p" || break
      hr_p=$hr_ppid
    done
  done
}
hr_new() { # LOW HIGH LAST: sets hr_found to the processes the command started
  hr_old=' '; hr_cand=; hr_found=
  for hr_d in /proc/[0-9]*; do
    hr_p=${hr_d#/proc/}
    case $hr_infra in *" $hr_p "*) continue ;; esac
    hr_stat "$hr_p" || continue
    case $hr_state in Z|X|x) continue ;; esac
    [ "$hr_ppid" -gt 0 ] || continue
    hr_is_new=
    if [ "$hr_start" -gt "$2" ]; then hr_is_new=1
    elif [ "$hr_start" -ge "$1" ] && [ "$hr_p" -gt "$3" ]; then hr_is_new=1
    fi
    if [ -n "$hr_is_new" ]; then hr_cand="$hr_cand $hr_p:$hr_ppid"; else hr_old="$hr_old$hr_p "; fi
  done
  hr_more=1
  while [ -n "$hr_more" ]; do
    hr_more=; hr_left=
    for hr_c in $hr_cand; do
      case $hr_old in
        *" ${hr_c#*:} "*) hr_old="$hr_old${hr_c%:*} "; hr_more=1 ;;
        *) hr_left="$hr_left $hr_c" ;;
      esac
    done
    hr_cand=$hr_left
  done
  for hr_c in $hr_cand; do hr_found="$hr_found ${hr_c%:*}"; done
}
hr_int() { # TOKEN LOW HIGH LAST SHELL [PID...]: what Ctrl-C does, to the shell last
  hr_t=$1; hr_lo=$2; hr_hi=$3; hr_la=$4; hr_sh_pid=$5; shift 4
  hr_ours "$@"
  hr_new "$hr_lo" "$hr_hi" "$hr_la"
  [ -z "$hr_found" ] || kill -STOP $hr_found
  kill -INT "$hr_sh_pid"
  hr_new "$hr_lo" "$hr_hi" "$hr_la"
  if [ -n "$hr_found" ]; then kill -INT $hr_found; kill -CONT $hr_found; fi
  printf '\036hr%s\036' "$hr_t" >&8
}
hr_kill() { # TOKEN LOW HIGH LAST SHELL [PID...]: kill until nothing is left
  hr_t=$1; hr_lo=$2; hr_hi=$3; hr_la=$4; hr_sh_pid=$5; shift 4
  hr_ours "$@"
  [ "$hr_sh_pid" -le 1 ] || kill -STOP "$hr_sh_pid"
  hr_pass=0
  while [ "$hr_pass" -lt 60 ]; do
    hr_new "$hr_lo" "$hr_hi" "$hr_la"
    [ -n "$hr_found" ] || break
    kill -STOP $hr_found
    kill -KILL $hr_found
    hr_pass=$((hr_pass + 1))
  done
  [ "$hr_sh_pid" -le 1 ] || kill -CONT "$hr_sh_pid"
  printf '\036hr%s %s\036' "$hr_t" "$hr_pass" >&8
}
hr_sig() { # TOKEN SIGNAL PID
  kill "-$2" "$3"
  printf '\036hr%s\036' "$1" >&8
}
hr_uptime() { # TOKEN
  read -r hr_u hr_x </proc/uptime
  printf '\036hr%s %s\036' "$1" "$hr_u" >&8
}
"""

_EXEC = r"""
hr_nl='
'
hr_setsid=; command -v setsid >/dev/null && hr_setsid=setsid
hr_bash=sh; command -v bash >/dev/null && hr_bash=bash
hr_body() { # TOKEN SHELL USER
  printf '\036hr%s begin %s\036' "$1" "$hr_last" >&8
  printf '\036hr%s begin\036' "$1" >&9
  hr_as "$3" $hr_setsid "$2" -c "$hr_text" >&8 2>&9 8>&- 9>&-
}
hr_rest() { # what a command left unread would be taken for requests
  if IFS= read -r hr_l || [ -n "$hr_l" ]; then cat >/dev/null; fi
}
hr_room() { # NEED: whether that many processes can start, where a container can tell
  for hr_d in /sys/fs/cgroup/pids /sys/fs/cgroup; do
    read -r hr_now <"$hr_d/pids.current" && read -r hr_most <"$hr_d/pids.max" || continue
    case $hr_most in *[!0-9]*) return 0 ;; esac
    [ "$((hr_most - hr_now))" -ge "$1" ]
    return
  done
}
hr_exec() { # TOKEN STDIN_BYTES LINES SHELL USER, then LINES lines of script, then the bytes
  hr_text=; hr_n=$3
  while [ "$hr_n" -gt 0 ]; do
    IFS= read -r hr_line || exit 0
    hr_text=$hr_text$hr_line$hr_nl
    hr_n=$((hr_n - 1))
  done
  read -r hr_last </proc/loadavg; hr_last=${hr_last##* }
  hr_with=$4; [ "$hr_with" != bash ] || hr_with=$hr_bash
  if [ "$2" -gt 0 ]; then
    head -c "$2" | { (hr_body "$1" "$hr_with" "$5"); hr_x=$?; hr_rest; exit "$hr_x"; }
  elif [ -e /dev/null ]; then
    (hr_body "$1" "$hr_with" "$5") </dev/null
  else # the agent has removed it
    : | (hr_body "$1" "$hr_with" "$5")
  fi
  hr_x=$?
  printf '\036hr%s end %s\036' "$1" "$hr_x" >&8
  printf '\036hr%s end %s\036' "$1" "$hr_x" >&9
}
hr_serve() { # reads requests from stdin; frames on 8 and 9
  read -r hr_me hr_x </proc/self/stat
  printf '\036hr%s ready %s\036' "$hr_key" "$hr_me" >&8
  while IFS= read -r hr_line; do
    case $hr_line in "$hr_key "*) eval "${hr_line#* }" ;; esac
  done
}
"""

CONTROL_PROGRAM = _packed(
    _AS
    + _SCAN
    + _EXEC
    + r"""
exec 8>&1 9>&2 >/dev/null 2>&1
IFS= read -r hr_key || exit 0
hr_serve
"""
)

TERMINAL_PROGRAM = _packed(
    _AS
    + r"""
[ -z "$4" ] || exec <"$4" >"$4" 2>&1
hr_tty=$(readlink "/proc/$$/fd/0")
stty rows 40 cols 160 iutf8 2>/dev/null || stty rows 40 cols 160 2>/dev/null
TERM=xterm
for hr_t in xterm-256color xterm linux vt100 ansi; do
  for hr_d in /etc/terminfo /lib/terminfo /usr/share/terminfo /usr/lib/terminfo; do
    [ ! -e "$hr_d/${hr_t%"${hr_t#?}"}/$hr_t" ] || { TERM=$hr_t; break 2; }
  done
done
export TERM
case $1 in ''|root|0|root:root|0:0) ;; *) chown -- "${1%%:*}" "$hr_tty" ;; esac
[ -z "$2" ] || mkdir -p -- "$2" 2>/dev/null
cd -- "${2:-/}" 2>/dev/null || cd /
printf '\033]hr%s %s\007' "$3" "$hr_tty"
if command -v bash >/dev/null; then hr_as "$1" bash --login; fi
hr_as "$1" sh -l
"""
)
"""A login shell on a pseudo-terminal: `sh -c PROGRAM sh USER WORKDIR TOKEN [TTY]`, as root.

With TTY it opens that device, which becomes the controlling terminal of a session without one.
Before the shell starts it says `OSC hr<token> <device> BEL`, which no screen shows.
"""

PROBE = r"""
hr_mode=; case $(stty -a -F "$hr_tty" 2>/dev/null) in
  *-icanon*) hr_mode=raw ;;
  *icanon*) hr_mode=cooked ;;
esac
echo "mode $hr_mode"
hr_maybe=; [ "$hr_mode" = cooked ] || hr_maybe=1
for hr_d in /proc/[0-9]*; do
  hr_s=
  { while IFS= read -r hr_l; do hr_s="$hr_s $hr_l"; done <"$hr_d/stat"; } 2>/dev/null || continue
  set -- ${hr_s##*) }
  [ "$5" = "$hr_nr" ] && [ "$3" = "$6" ] || continue
  hr_w=; { read -r hr_w <"$hr_d/wchan"; } 2>/dev/null
  echo "process $1 $3 $4 $hr_w"
  case $hr_w in ''|0|*tty_read*|wait_woken) hr_maybe=1 ;; esac
done
if [ -n "$hr_token" ] && [ -n "$hr_maybe" ]; then
  { printf '\033]hr%s\007' "$hr_token" >"$hr_tty" & } >/dev/null 2>&1 </dev/null
fi
"""
"""What the terminal waits for: its mode, and of each process in its foreground group the state, the
group, the session and where in the kernel it sleeps. Then, if they may be idle, a mark through the
terminal itself, so that whoever reads it knows that all output before it has come. Needs `hr_tty`,
the number of that device `hr_nr`, and `hr_token`; without a token there is no mark.
"""

INIT_PROGRAM = _packed(
    _AS
    + _BESIDE
    + _KEEP
    + _SCAN
    + _EXEC
    + r"""
exec 8>&1 9>&2 >/dev/null 2>/dev/null
IFS= read -r hr_key || exit 0
IFS= read -r hr_key1 <&3 || exit 0
IFS= read -r hr_key2 <&6 || exit 0
[ -z "$2" ] || [ -d "$2" ] || mkdir -p -- "$2"
if [ "$#" -gt 2 ]; then
  (shift 2; hr_beside "$@") </dev/null 3<&- 4>&- 5>&- 6<&- 7>&- 8>&- 9>&-
fi
cd -- "${2:-/}" || cd /
hr_first=1
hr_channel() { # KEY [go]
  hr_key=$1
  [ -n "$hr_first$2" ] || hr_go || exit 98
  hr_serve
  exit 98
}
hr_agent() { # USER WORKDIR
  if [ -z "$hr_first" ]; then
    while [ "$hr_left" -gt 0 ] && hr_stat "$hr_left" && [ "$hr_state" != Z ]; do sleep 1; done
    hr_gone 137
  fi
  hr_keep "$@"
}
while :; do
  hr_agent "$1" "${2:-/}" 3<&- 4>&- 5>&- 6<&- 7</dev/null |
    hr_channel "$hr_key1" go <&3 8>&4 9>&5 3<&- 4>&- 5>&- 6<&- 7>&- |
    hr_channel "$hr_key2" <&6 8>&7 9>/dev/null 3<&- 4>&- 5>&- 6<&- 7>&-
  [ "$?" -ne 98 ] || exit 0
  hr_first=
  printf '\036hr%s 137\036' "$hr_key1" >&4
  printf '\036hr%s 137\036' "$hr_key2" >&7
  while IFS= read -r hr_line <&3; do
    case $hr_line in "go $hr_key1 "*) break ;; esac
  done
  hr_left=${hr_line##* }
done
"""
)
"""The first process of a namespace sandbox: `AGENT` and two of `CONTROL` in one.

Arguments USER and WORKDIR, then those of `BESIDE`, if there is something beside; with the agent's
channel on 0, 1, 2, the control channel on 3, 4, 5 and the killer's on 6 and 7; it comes as a file
on 9. As process 1 it cannot be killed from inside; when all three of its children are gone
(`kill -9 -1`), it starts them again. With the word to go on, the control channel says which shell
was running: if it lives, it lives on.
"""

KEEPER_PROGRAM = _packed(
    _AS
    + _BESIDE
    + _KEEP
    + r"""
exec 7</dev/null 8>&1 9>&2 >/dev/null 2>/dev/null
IFS= read -r hr_key || exit 0
if [ "$#" -gt 2 ]; then (shift 2; hr_beside "$@") </dev/null 7<&- 8>&- 9>&-; fi
cd -- "${2:-/}" || cd /
hr_keep "$1" "${2:-/}"
"""
)
"""The first process of a sandbox that the launcher started, which makes its working directory and
runs our own requests: `AGENT`, with the arguments of `INIT_PROGRAM`. It comes as a file on 9 too.
"""

INIT = ". /dev/fd/9"
"""What the namespace provider starts as `sh -c ...`."""
