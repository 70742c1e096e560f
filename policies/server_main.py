"""The program that becomes the vLLM server; `server.py` starts it.

Rule: importing it loads nothing. Each process that vLLM spawns imports the main program again
before its own work, so a main program without imports starts the server some seconds sooner.
"""


def main() -> None:
    """Run vLLM's OpenAI-compatible server with the arguments of this program."""
    import runpy

    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    main()
