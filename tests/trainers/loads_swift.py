"""Run by ms-swift's own Python: what its template makes of our rows, and one step of training.

Questions: sft FILE MODEL, dpo FILE MODEL, weights FILE MODEL.
"""

from itertools import groupby
from typing import Any

from swift.pipelines.train.rlhf import SwiftRLHF
from swift.pipelines.train.sft import SwiftSft
from told import IGNORED, answer, learned


def sft(file: str, model: str, out: str) -> dict[str, Any]:
    """`messages` with `loss`."""
    pipeline = SwiftSft(_settings(file, model, out))
    rows, _ = pipeline.args.load_dataset()
    made = [pipeline.template.encode(dict(row)) for row in rows]
    words = pipeline.tokenizer
    return {
        "ids": [list(row["input_ids"]) for row in made],
        "learned": [learned(words, row["input_ids"], row["labels"]) for row in made],
        "loss": _loss(pipeline.run()),
    }


def dpo(file: str, model: str, out: str) -> dict[str, Any]:
    """`messages` and `rejected_messages`."""
    pipeline = SwiftRLHF([*_settings(file, model, out), "--rlhf_type", "dpo"])
    rows, _ = pipeline.args.load_dataset()
    made = [pipeline.template.encode(dict(row)) for row in rows]
    words = pipeline.tokenizer
    return {
        side: [learned(words, row[f"{side}_input_ids"], row[f"{side}_labels"]) for row in made]
        for side in ("chosen", "rejected")
    } | {
        "whole": [words.decode(row["rejected_input_ids"]) for row in made],
        "loss": _loss(pipeline.run()),
    }


def weights(file: str, model: str, out: str) -> dict[str, Any]:
    """The distinct weights of the tokens of each chosen answer, in turn."""
    binary = ("--is_binary_loss_scale", "false")
    pipeline = SwiftRLHF([*_settings(file, model, out), "--rlhf_type", "dpo", *binary])
    rows, _ = pipeline.args.load_dataset()
    made = [pipeline.template.encode(dict(row)) for row in rows]
    return {"chosen": [_weights(row) for row in made]}


def _weights(row: dict[str, Any]) -> list[list[float]]:
    tokens = zip(row["chosen_labels"], row["chosen_loss_scale"], strict=True)
    answers = groupby(tokens, key=lambda token: token[0] != IGNORED)
    return [list(dict.fromkeys(w for _, w in answer)) for counted, answer in answers if counted]


def _settings(file: str, model: str, out: str) -> list[str]:
    settings = {
        "model": model,
        "model_type": "llama",
        "template": "chatml",
        "dataset": file,
        "output_dir": out,
        "tuner_type": "full",
        "torch_dtype": "float32",
        "fp16": "false",
        "bf16": "false",
        "max_steps": "1",
        "per_device_train_batch_size": "1",
        "gradient_accumulation_steps": "1",
        "gradient_checkpointing": "false",
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": "1",
        "dataloader_num_workers": "0",
        "strict": "true",
        "dataset_shuffle": "false",
        "check_model": "false",  # would ask a hub whether the folder is up to date
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _loss(told: dict[str, Any]) -> float:
    return next(entry["loss"] for entry in told["log_history"] if "loss" in entry)


if __name__ == "__main__":
    answer(sft=sft, dpo=dpo, weights=weights)
