"""Writes a model as a folder that Hugging Face's transformers loads: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..files import check_writable, expand, new_file_mode, write_whole
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
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder = check_new_folder(folder)
    # Arrays may be views of any layout; safetensors writes an array's memory as it stands.
    weights = {
        name if name == "lm_head.weight" else f"transformer.{name}": np.ascontiguousarray(weight)
        for name, weight in named_weights(model).items()
    }
    files: dict[str, bytes] = {}
    vocabulary = model.vocabulary
    if isinstance(vocabulary, vocabularies.Characters):
        files["vocab.json"] = _json(vocabulary.ids)
    elif isinstance(vocabulary, vocabularies.Tokenizers):
        files["tokenizer.json"] = vocabulary.content.encode()
    if model.token_names is not None:
        files["token_names.json"] = _json(list(model.token_names))
    if model.trained_tokens is not None:
        files["trained_tokens.json"] = _json(sorted(model.trained_tokens))
    files["config.json"] = _json(_config(model, is_tied=model.lm_head is model.wte))  # last: then the folder is whole
    is_new, part = not folder.exists(), folder / (WEIGHTS + ".part")  # it gets its name when it is whole
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, part, metadata={"format": "pt"})
        os.chmod(part, new_file_mode())
        os.replace(part, folder / WEIGHTS)
        for name, content in files.items():
            write_whole(folder / name, content)
    except BaseException as error:  # also Ctrl-C: the next try finds no files in its way
        for name in (part.name, WEIGHTS, *files):
            (folder / name).unlink(missing_ok=True)
        if is_new and folder.is_dir():
            folder.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise NanopatchError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None
        raise
    return folder


def check_new_folder(folder: PathLike) -> Path:
    """The path of a folder that `save_checkpoint` can make or fill. Raises NanopatchError if it cannot."""
    folder = expand(folder)
    try:
        try:
            is_there = bool(os.lstat(folder))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            check_writable(next(parent for parent in folder.absolute().parents if parent.exists()) / WEIGHTS)
        elif not folder.is_dir():
            raise NanopatchError(f"{folder} is no folder: give a new one")
        elif any(folder.iterdir()):
            raise NanopatchError(f"{folder} holds files already: give a new folder")
        else:
            check_writable(folder / WEIGHTS)
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or half of a surrogate pair
        if isinstance(error, NanopatchError):
            raise
        raise NanopatchError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None
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


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
