"""The command line."""

import signal
import sys


def main() -> None:
    """Entry point of `headrace`: a Ctrl-C that no command catches is an exit code, no traceback."""
    try:
        from headrace.cli.app import run  # kept light: `headrace --help` imports no engine

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # All is put away: a further Ctrl-C while the interpreter ends changes nothing.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
