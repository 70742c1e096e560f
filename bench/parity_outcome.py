"""What one side says of one case of `bench.parity`, and when two sides agree."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One task under one policy, as one harness ended it."""

    rewards: dict[str, float] | None
    """Every number the verifier wrote; None when there is no reward."""
    kind: str
    """`agent_timeout`, or why there is no reward; empty for neither."""

    def __str__(self) -> str:
        numbers = "none"
        if self.rewards is not None:
            numbers = " ".join(f"{key}={value:g}" for key, value in sorted(self.rewards.items()))
        return f"{numbers}{f' ({self.kind})' if self.kind else ''}"


_WINDOWS_LINES = (
    "test.sh has Windows line ends: under Harbor the kernel finds no program `bash\\r` and nobody"
    " is graded; headrace runs the script without them and says so in the verifier's log"
)
EXPECTED_DIFFERENCES = {
    **{("parity/crlf-script", policy): _WINDOWS_LINES for policy in ("oracle", "noop", "terminus")},
    ("parity/stale-reward", "terminus"): (
        "the agent wrote the reward file itself and the tests wrote none: Harbor 0.24 takes the"
        " agent's; 0.25 and headrace remove what was there before the tests"
    ),
}
"""Cases in which headrace decides otherwise on purpose, by task and policy, and why."""
