"""The heartbeat daemon: heartbeat.py HOME

Reads HOME/heartbeat.conf, then writes its process id to HOME/ready and a line to HOME/heartbeat.log
every 20 ms. SIGHUP: reads the configuration again. SIGTERM: ends, unless the configuration says
`stubborn = yes`. It ends with status 1 at once if the configuration is missing or has no word.
"""

import os
import signal
import sys
import time


def configuration(home):
    with open(f"{home}/heartbeat.conf") as file:
        pairs = (line.partition("=") for line in file if "=" in line)
        found = {key.strip(): value.strip() for key, _, value in pairs}
    if not found.get("word"):
        raise ValueError("heartbeat.conf has no word")
    return found


def main():
    home = sys.argv[1]
    settings = configuration(home)
    running = True

    def on_hangup(signum, frame):
        nonlocal settings
        settings = configuration(home)

    def on_terminate(signum, frame):
        nonlocal running
        running = settings.get("stubborn") == "yes"

    signal.signal(signal.SIGHUP, on_hangup)
    signal.signal(signal.SIGTERM, on_terminate)
    with open(f"{home}/ready.new", "w") as file:
        file.write(f"{os.getpid()}\n")
    os.rename(f"{home}/ready.new", f"{home}/ready")
    count = 0
    with open(f"{home}/heartbeat.log", "a", buffering=1) as log:
        while running:
            count += 1
            log.write(f"{settings['word']} {count}\n")
            time.sleep(0.02)
        log.write("ended\n")
    os.remove(f"{home}/ready")


try:
    main()
except (OSError, ValueError) as error:
    sys.exit(f"heartbeat: {error}")
