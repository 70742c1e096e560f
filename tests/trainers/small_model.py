"""A model that every trainer loads in a second: the small model's tokenizer and two random layers.

Rule: a plain model folder. Its chat template marks what the model says, as TRL asks.
"""

import json
import shutil
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDTH, INNER, HEADS, LAYERS = 32, 64, 2, 2


def make_model(tokenizer_of: Path, folder: Path) -> Path:
    """Write the folder; its path."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tokenizer_of / name, folder / name)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = json.loads((tokenizer_of / "config.json").read_text())
    config |= {
        "hidden_size": WIDTH,
        "head_dim": WIDTH // HEADS,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(_weights(config["vocab_size"]))
    return folder


def _weights(words: int) -> bytes:
    """The safetensors format: a header of names, kinds, shapes and places, then the numbers."""
    import numpy as np

    chance = np.random.default_rng(0)
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    at = 0
    for name, shape in _shapes(words).items():
        ones = len(shape) == 1
        numbers = np.ones(shape) if ones else chance.normal(0, 0.02, shape)
        part = numbers.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def _shapes(words: int) -> dict[str, list[int]]:
    shapes = {"model.embed_tokens.weight": [words, WIDTH], "model.norm.weight": [WIDTH]}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": [WIDTH, WIDTH] for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": [INNER, WIDTH] for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = [WIDTH, INNER]
        shapes |= {f"{at}.{name}_layernorm.weight": [WIDTH] for name in ("input", "post_attention")}
    return shapes
