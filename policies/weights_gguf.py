"""Converts a Llama GGUF file with a byte-level tokenizer into a plain model folder.

    python -m headrace.policies.weights_gguf FILE.gguf FOLDER

Rule: the folder appears whole, by one rename, under a lock that ends with this process. It reads
with numpy and `gguf` alone, so no inference library is loaded. Other architectures and tokenizers
are refused. Each line on stdout is a fraction and what is being done.
"""

import fcntl
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3
"""Token type of a control token in a GGUF vocabulary."""


class _Gguf:
    """The fields of a GGUF file, by name."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self._reader = GGUFReader(path)
        self.tensors: list[Any] = self._reader.tensors
        architecture, tokenizer = self["general.architecture"], self["tokenizer.ggml.model"]
        if (architecture, tokenizer) != ("llama", "gpt2"):
            raise SystemExit(
                f"expected a llama model with a byte-level tokenizer (llama, gpt2), "
                f"found ({architecture}, {tokenizer}) in {path}"
            )

    def __getitem__(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        if field is None:
            raise SystemExit(f"expected the field {key}, found none")
        return field.contents()


def _config(gguf: _Gguf) -> dict[str, Any]:
    heads, width = gguf["llama.attention.head_count"], gguf["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(gguf["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "head_dim": width // heads,
        "intermediate_size": gguf["llama.feed_forward_length"],
        "num_hidden_layers": gguf["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": gguf["llama.attention.head_count_kv"],
        "max_position_embeddings": gguf["llama.context_length"],
        "rope_theta": float(gguf["llama.rope.freq_base"]),
        # single precision in the file; nine digits give back the number that was meant
        "rms_norm_eps": round(float(gguf["llama.attention.layer_norm_rms_epsilon"]), 9),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": all(t.name != "output.weight" for t in gguf.tensors),
        **_special_ids(gguf),
    }


def _special_ids(gguf: _Gguf) -> dict[str, int]:
    return {
        "bos_token_id": int(gguf["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(gguf["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(gguf["tokenizer.ggml.padding_token_id"]),
    }


def _tokenizer(gguf: _Gguf) -> dict[str, Any]:
    tokens: list[str] = gguf["tokenizer.ggml.tokens"]
    control = [i for i, kind in enumerate(gguf["tokenizer.ggml.token_type"]) if kind == _CONTROL]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], **flags, "special": True} for i in control
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in gguf["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(gguf: _Gguf) -> dict[str, Any]:
    tokens, ids = gguf["tokenizer.ggml.tokens"], _special_ids(gguf)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf["llama.context_length"],
        "bos_token": tokens[ids["bos_token_id"]],
        "eos_token": tokens[ids["eos_token_id"]],
        "pad_token": tokens[ids["pad_token_id"]],
        "unk_token": tokens[gguf["tokenizer.ggml.unknown_token_id"]],
    }


def _tensor_name(name: str) -> str | None:
    if name in _OUTER:
        return _OUTER[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _INNER:
        return f"model.layers.{parts[1]}.{_INNER[parts[2]]}.weight"
    return None


def _shape(tensor: Any) -> list[int]:
    return [int(n) for n in reversed(tensor.shape)]


def _bfloat16(gguf: _Gguf, tensor: Any, name: str) -> bytes:
    """The tensor's values, dequantised, in the row order of the original, rounded to even."""
    import numpy as np
    from gguf.quants import dequantize

    values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    heads = {
        "q_proj": gguf["llama.attention.head_count"],
        "k_proj": gguf["llama.attention.head_count_kv"],
    }.get(name.split(".")[-2], 0)
    if heads:  # GGUF interleaves the two halves of the rotary embedding; set them apart again
        rows, columns = values.shape
        values = values.reshape(heads, rows // heads // 2, 2, columns)
        values = values.swapaxes(1, 2).reshape(rows, columns)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return bytes(rounded.astype("<u2").tobytes())


def _write_weights(gguf: _Gguf, stream: BinaryIO) -> Iterator[float]:
    """Write a safetensors file; yields the fraction of the tensors written."""
    named = [(tensor, name) for tensor in gguf.tensors if (name := _tensor_name(tensor.name))]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor, name in named:
        shape = _shape(tensor)
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    stream.write(struct.pack("<Q", len(encoded)) + encoded)
    for done, (tensor, name) in enumerate(named, 1):
        stream.write(_bfloat16(gguf, tensor, name))
        yield done / len(named)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def convert(source: Path, folder: Path) -> Iterator[tuple[float, str]]:
    """Write the model folder; yields fraction and what is being done."""
    yield 0.0, f"reading {source.name}"
    gguf = _Gguf(source)
    _write_json(folder / "config.json", _config(gguf))
    _write_json(folder / "generation_config.json", dict(_special_ids(gguf)))
    _write_json(folder / "tokenizer.json", _tokenizer(gguf))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(gguf))
    template = str(gguf["tokenizer.chat_template"])
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as stream:
        for fraction in _write_weights(gguf, stream):
            yield 0.1 + 0.85 * fraction, "converting weights"
        yield 0.95, "writing weights"
        stream.flush()
        os.fsync(stream.fileno())


def _say(fraction: float, what: str) -> None:
    sys.stdout.write(f"{fraction:.3f} {what}\n")
    sys.stdout.flush()


def main(source: Path, folder: Path) -> None:
    """Convert under the lock. A folder another converter has just finished is left as it is."""
    from headrace.errors import ConfigError
    from headrace.policies.weights import check_model

    lock = folder.parent / f".{folder.name}.lock"
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(0.0, "waiting for another converter")
            fcntl.flock(held, fcntl.LOCK_EX)
        for stale in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        try:
            check_model(folder)
        except ConfigError:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return _say(1.0, "ready")
        partial = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
        partial.mkdir()
        for fraction, what in convert(source, partial):
            _say(fraction, what)
        partial.rename(folder)
        _say(1.0, "ready")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
