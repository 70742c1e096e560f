# A comment before the shebang, and no run bit: seen in public task sets.
#!/bin/bash
if [[ "$(cat count.txt)" -ge 1 ]]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
