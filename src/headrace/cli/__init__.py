"""The command line."""

import signal
import sys


def main() -> None:
    """Entry point of `headrace`: a Ctrl-C that no command catches is an exit code, no traceback.

    SIGTERM ends a command as Ctrl-C does, so that it puts away what it has begun.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:  # and not ignored by whoever started us
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from headrace.cli.app import run  # kept light: `headrace --help` imports no engine

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # All is put away: a further Ctrl-C while the interpreter ends changes nothing.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, before)
