"""Writes a model as a folder that Hugging Face's transformers loads: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import NanopatchError
from ..files import expand, write_whole
from ..types import PathLike
from . import vocabulary as vocabularies
from .backward import named_weights
from .gpt2 import Model
from .hub import WEIGHTS


def save_checkpoint(model: Model, folder: PathLike) -> Path:
    """Write a model into a new folder, in the names and the layout of the published GPT-2, and return the folder.

    The weights have the model's own dtype. Biases that its checkpoint did not have are written as zeros. What is known
    of the vocabulary goes with it: `vocab.json` for characters, `tokenizer.json`, or `"vocabulary": "gpt2"`
    in `config.json`.

    Raises NanopatchError if the folder holds anything already, or cannot be written.

    Examples
    --------
    >>> import nanopatch, tempfile
    >>> folder = save_checkpoint(nanopatch.load("nano"), tempfile.mkdtemp())
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'model.safetensors', 'trained_tokens.json']
    """
    from safetensors.numpy import save_file

    folder = expand(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise NanopatchError(f"{folder} holds files already: give a new folder")
        is_tied = model.lm_head is model.wte
        weights = {
            name if name == "lm_head.weight" else f"transformer.{name}": weight
            for name, weight in named_weights(model).items()
        }
        part = folder / (WEIGHTS + ".part")  # it gets its name when it is whole
        try:
            save_file(weights, part, metadata={"format": "pt"})
            os.replace(part, folder / WEIGHTS)
        finally:
            part.unlink(missing_ok=True)
        vocabulary = model.vocabulary
        if isinstance(vocabulary, vocabularies.Characters):
            _write_json(folder / "vocab.json", vocabulary.ids)
        elif isinstance(vocabulary, vocabularies.Tokenizers):
            write_whole(folder / "tokenizer.json", vocabulary.content.encode())
        if model.token_names is not None:
            _write_json(folder / "token_names.json", list(model.token_names))
        if model.trained_tokens is not None:
            _write_json(folder / "trained_tokens.json", sorted(model.trained_tokens))
        _write_json(folder / "config.json", _config(model, is_tied))  # last: a folder without it is not whole
    except OSError as error:
        raise NanopatchError(f"cannot write {folder}: {error.strerror or error}") from None
    return folder


def _config(model: Model, is_tied: bool) -> dict[str, Any]:
    """`config.json` in Hugging Face's terms. A `bos_token_id` outside the vocabulary is left out."""
    config = vars(model.config) | {"tie_word_embeddings": is_tied}
    if config["bos_token_id"] is None or not 0 <= config["bos_token_id"] < model.n_vocab:
        config["bos_token_id"] = None
    config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "eos_token_id": config["bos_token_id"]}
    config |= {"torch_dtype": str(model.dtype), "n_ctx": model.n_ctx}
    if isinstance(model.vocabulary, vocabularies.GPT2):
        config["vocabulary"] = "gpt2"
    return config


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
