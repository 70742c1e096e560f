"""headrace: terminal agents in containers by the thousand, verified trajectories back.

The package root holds the vocabulary (`types`, `errors`, `aio`) and the command line. Importing
it has no side effects and pulls in no optional dependency.
"""

__version__ = "0.1.0"
