"""Run by axolotl's own Python: what its strategies make of rows read as our `axolotl.yml` says.

Questions: sft FOLDER MODEL, dpo FOLDER MODEL.
"""

import os
from pathlib import Path
from typing import Any

import yaml
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets, load_preference_datasets
from axolotl.loaders import load_tokenizer
from axolotl.utils.dict import DictDefault
from told import answer, learned


def sft(folder: str, model: str, out: str) -> dict[str, Any]:
    """`type: chat_template`."""
    cfg = _config(folder, model, out)
    words = load_tokenizer(cfg)
    rows = list(load_datasets(cfg=cfg).train_dataset)
    return {
        "ids": [list(row["input_ids"]) for row in rows],
        "learned": [learned(words, row["input_ids"], row["labels"]) for row in rows],
    }


def dpo(folder: str, model: str, out: str) -> dict[str, Any]:
    """`rl: dpo` with `type: chat_template.default`."""
    rows = list(load_preference_datasets(cfg=_config(folder, model, out)).train_dataset)
    return {name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")}


def _config(folder: str, model: str, out: str) -> DictDefault:
    os.chdir(folder)  # the paths in the file are relative to it
    given = yaml.safe_load(Path("axolotl.yml").read_text())
    return load_cfg(
        DictDefault(
            given
            | {
                "base_model": model,
                "dataset_prepared_path": f"{out}/prepared",
                "dataset_num_proc": 1,
                "output_dir": out,
                "val_set_size": 0,
                "sequence_len": 4096,
                "micro_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "num_epochs": 1,
                "learning_rate": 1e-5,
                "optimizer": "adamw_torch",
                "lr_scheduler": "constant",
                "bf16": False,
                "tf32": False,
            }
        )
    )


if __name__ == "__main__":
    answer(sft=sft, dpo=dpo)
