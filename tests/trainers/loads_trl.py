"""Run by TRL's own Python: what its trainers make of our rows, and one step of training on them.

Questions: sft FILE MODEL all|assistant, exact FOLDER MODEL, dpo FILE MODEL, kto FILE MODEL.
"""

from typing import Any

from datasets import load_dataset
from told import answer, learned, masked
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

ONE_STEP = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
    "max_length": None,
}


def sft(file: str, model: str, what: str, out: str) -> dict[str, Any]:
    """`messages`; the loss is of the `assistant` or of `all`."""
    rows = load_dataset("json", data_files=file, split="train")
    return _sft(rows, model, out, assistant_only_loss=what == "assistant")


def exact(folder: str, model: str, out: str) -> dict[str, Any]:
    """Token ids as they were sampled: TRL takes them as they are."""
    rows = load_dataset(folder, split="train")
    rows = rows.rename_columns({"token_ids": "input_ids", "loss_mask": "assistant_masks"})
    return _sft(rows.select_columns(["input_ids", "assistant_masks"]), model, out)


def _sft(rows: Any, model: str, out: str, **settings: Any) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=out, **settings, **ONE_STEP),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    made = list(trainer.train_dataset)
    return {
        "ids": [row["input_ids"] for row in made],
        "learned": [learned(tokenizer, row["input_ids"], row["labels"]) for row in made],
        "loss": trainer.train().training_loss,
    }


def dpo(file: str, model: str, out: str) -> dict[str, Any]:
    """`prompt`, `chosen`, `rejected`."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(output_dir=out, **ONE_STEP),
        train_dataset=load_dataset("json", data_files=file, split="train"),
        processing_class=tokenizer,
    )
    made = list(trainer.train_dataset)
    batch = trainer.data_collator(made)
    ids, mask = batch["input_ids"].tolist(), batch["completion_mask"].tolist()
    counted = [learned(tokenizer, i, masked(i, m)) for i, m in zip(ids, mask, strict=True)]
    return {
        "prompt": [tokenizer.decode(row["prompt_ids"]) for row in made],
        "chosen": counted[: len(made)],
        "rejected": counted[len(made) :],
        "loss": trainer.train().training_loss,
    }


def kto(file: str, model: str, out: str) -> dict[str, Any]:
    """`prompt`, `completion`, `label`."""
    from trl import KTOConfig, KTOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = KTOTrainer(
        model=model,
        args=KTOConfig(output_dir=out, **ONE_STEP),
        train_dataset=load_dataset("json", data_files=file, split="train"),
        processing_class=tokenizer,
    )
    made = list(trainer.train_dataset)
    return {
        "labels": [row["label"] for row in made],
        "completion": [tokenizer.decode(row["completion_ids"]) for row in made],
        "loss": trainer.train().training_loss,
    }


if __name__ == "__main__":
    answer(sft=sft, exact=exact, dpo=dpo, kto=kto)
