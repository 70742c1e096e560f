"""The command line."""


def main() -> None:
    """Entry point of `headrace`."""
    from headrace.cli.app import run  # kept light: `headrace --help` imports no engine

    run()
