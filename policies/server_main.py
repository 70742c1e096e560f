"""The program that becomes the vLLM server; `server.py` starts it.

Rule: importing it loads nothing. Each process that vLLM spawns imports the main program again
before its own work, so a main program without imports starts the server some seconds sooner. On
that import such a process also asks to die with its parent, for the case that the keeper is
killed and cannot see to it.
"""

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run vLLM's OpenAI-compatible server with the arguments of this program."""
    import runpy

    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


def _die_with_parent() -> None:
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__mp_main__":  # what multiprocessing calls the main program in a spawned process
    _die_with_parent()
if __name__ == "__main__":
    main()
