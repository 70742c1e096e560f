"""Run by Harbor's own Python: what its validator, its models and its viewer say of our files.

python harbor_reads.py atif FILE...     one line of JSON per file: its errors
python harbor_reads.py job FOLDER...    one object per job: its trials, the viewer's answers
"""

import json
import sys
from pathlib import Path


def atif(files: list[str]) -> None:
    from harbor.utils.trajectory_validator import TrajectoryValidator

    for file in files:
        validator = TrajectoryValidator()
        validator.validate(Path(file))
        sys.stdout.write(json.dumps({"file": file, "errors": validator.errors}) + "\n")


def job(folder: Path) -> None:
    from harbor.models.job.config import JobConfig
    from harbor.models.job.result import JobResult
    from harbor.models.trial.config import TrialConfig
    from harbor.models.trial.result import TrialResult

    JobConfig.model_validate_json((folder / "config.json").read_text())
    found = JobResult.model_validate_json((folder / "result.json").read_text())
    trials = {}
    for trial in sorted(path for path in folder.iterdir() if path.is_dir()):
        TrialConfig.model_validate_json((trial / "config.json").read_text())
        result = TrialResult.model_validate_json((trial / "result.json").read_text())
        trials[result.trial_name] = {
            "task": result.task_name,
            "rewards": result.verifier_result and result.verifier_result.rewards,
            "error": result.exception_info and result.exception_info.exception_type,
            "steps": [step.step_name for step in result.step_results or []],
        }
    told = {
        "trials": trials,
        "completed": found.stats.n_completed_trials,
        "errored": found.stats.n_errored_trials,
        "metrics": {key: value.metrics for key, value in found.stats.evals.items()},
        "viewer": viewer(folder, list(trials)),
    }
    sys.stdout.write(json.dumps(told) + "\n")


def viewer(folder: Path, trials: list[str]) -> dict[str, int]:
    """The status of the pages of `harbor view` that show this job."""
    from fastapi.testclient import TestClient
    from harbor.viewer.server import create_app

    client = TestClient(create_app(folder.parent))
    job = f"/api/jobs/{folder.name}"
    pages = ["/api/jobs", job, f"{job}/config", f"{job}/tasks", f"{job}/trials"]
    for trial in trials:
        one = f"{job}/trials/{trial}"
        pages += [one, f"{one}/trajectory", f"{one}/verifier-output", f"{one}/files"]
    return {page: client.get(page).status_code for page in pages}


if __name__ == "__main__":
    if sys.argv[1] == "atif":
        atif(sys.argv[2:])
    else:
        for folder in sys.argv[2:]:
            job(Path(folder))
