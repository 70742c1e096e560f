"""Run by LLaMA-Factory's own Python: what its readers make of our rows, and one step of training.

Questions: sft FOLDER NAME MODEL, dpo FOLDER NAME MODEL. FOLDER has a `dataset_info.json` with NAME.
"""

import json
from pathlib import Path
from typing import Any

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
from llamafactory.train.tuner import run_exp
from told import answer, learned

STAGES = {"sft": "sft", "dpo": "rm"}
"""By the stage of training: that of reading."""


def sft(folder: str, name: str, model: str, out: str) -> dict[str, Any]:
    """One conversation."""
    rows, words = _rows("sft", folder, name, model, out)
    return {
        "ids": [row["input_ids"] for row in rows],
        "learned": [learned(words, row["input_ids"], row["labels"]) for row in rows],
        "loss": _loss("sft", folder, name, model, out),
    }


def dpo(folder: str, name: str, model: str, out: str) -> dict[str, Any]:
    """A conversation and two answers."""
    rows, words = _rows("dpo", folder, name, model, out)
    sides = {
        side: [learned(words, row[f"{side}_input_ids"], row[f"{side}_labels"]) for row in rows]
        for side in ("chosen", "rejected")
    }
    whole = [words.decode(row["chosen_input_ids"]) for row in rows]
    return sides | {"whole": whole, "loss": _loss("dpo", folder, name, model, out)}


def _settings(stage: str, folder: str, name: str, model: str, out: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "do_train": True,
        "model_name_or_path": model,
        "dataset": name,
        "dataset_dir": folder,
        "template": "chatml",
        "cutoff_len": 8192,
        "finetuning_type": "full",
        "output_dir": out,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_gradient_checkpointing": True,
        "overwrite_cache": True,
    }


def _rows(stage: str, *where: str) -> tuple[list[dict[str, Any]], Any]:
    model, data, training, _, _ = get_train_args(_settings(stage, *where))
    words = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(words["tokenizer"], data)
    found = get_dataset(template, model, data, training, stage=STAGES[stage], **words)
    return list(found["train_dataset"]), words["tokenizer"]


def _loss(stage: str, *where: str) -> float:
    run_exp(_settings(stage, *where))
    log = (Path(where[-1]) / "trainer_state.json").read_text()
    return next(entry["loss"] for entry in json.loads(log)["log_history"] if "loss" in entry)


if __name__ == "__main__":
    answer(sft=sft, dpo=dpo)
