#!/bin/bash
python3 - <<'PY'
import urllib.request
try:
    page = urllib.request.urlopen("http://127.0.0.1:8043/index.html", timeout=5).read()
    reward = int(page == b"the page\n")
except OSError as error:
    print(error)
    reward = 0
open("/logs/verifier/reward.txt", "w").write(f"{reward}\n")
PY
