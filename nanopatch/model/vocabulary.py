"""The vocabulary of a model: whose it is, and what turns its text into token ids and back.

A vocabulary that is not known is never taken for GPT-2's: its text would become ids that mean something else.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import NanopatchError
from ..files import expand, opened, read_json, read_text
from ..types import PathLike
from . import tokenizer
from .unpickle import unpickle

#: The files that can hold a checkpoint's vocabulary, the preferred one first.
FILES = ("meta.pkl", "tokenizer.json", "vocab.json")


class MissingPackage(NanopatchError):
    """The package tokenizers is not installed."""


class Vocabulary(Protocol):
    """What a model needs of its vocabulary.

    special_tokens: texts such as `<|endoftext|>` that stand for one token only if that is asked for.
    """

    special_tokens: tuple[str, ...]

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Token ids of a text. special_tokens: read `<|endoftext|>` and its like inside the text as those tokens.

        Raises NanopatchError if the vocabulary cannot spell the text.
        """

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of token ids."""

    def token_text(self, token: int) -> str:
        """The text of one token, different from that of any other; `#id` if it has none."""


class GPT2:
    """GPT-2's own, padded or extended ones included: the ids from 50,257 on have no text."""

    special_tokens: tuple[str, ...] = (tokenizer.ENDOFTEXT,)

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        return tokenizer.encode(text, special_tokens)

    def decode(self, token_ids: Iterable[int]) -> str:
        return _decoded(token_ids, range(tokenizer.N_VOCAB), tokenizer.decode)

    def token_text(self, token: int) -> str:
        return tokenizer.token_text(token) if token < tokenizer.N_VOCAB else f"#{token}"


class Characters:
    """A character for each token, as in nanoGPT's and minGPT's character-level models.

    ids: {character: id}. Ids without a character are shown as `#id`.
    """

    special_tokens: tuple[str, ...] = ()

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        self.characters = {id: character for character, id in self.ids.items()}

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        unknown = next((character for character in text if character not in self.ids), None)
        if unknown is not None:
            known = "".join(self.ids)
            raise NanopatchError(f"{unknown!r} is none of the {len(known)} characters of this model: {known!r:.200}")
        return [self.ids[character] for character in text]

    def decode(self, token_ids: Iterable[int]) -> str:
        return "".join(self.token_text(token) for token in token_ids)

    def token_text(self, token: int) -> str:
        return self.characters.get(token, f"#{token}")


class Tokenizers:
    """A `tokenizer.json`, read by the package tokenizers (the extra `tokenizers`).

    path: of the file, for error messages. content: its text, so that a copy of a model needs no file. No text is cut
    off or filled up, whatever the file says of that.
    """

    def __init__(self, path: Path, content: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingPackage(
                f'{path} is another vocabulary than GPT-2\'s: to read it, run pip install "nanopatch[tokenizers]"'
            ) from None
        try:
            self.tokenizer, self._with_special = Tokenizer.from_str(content), Tokenizer.from_str(content)
        except Exception as error:  # the package raises a bare Exception
            raise NanopatchError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from None
        for each in (self.tokenizer, self._with_special):
            each.no_truncation()
            each.no_padding()
        self.tokenizer.encode_special_tokens = True  # as ordinary text, that is
        added = self.tokenizer.get_added_tokens_decoder().values()
        self.special_tokens: tuple[str, ...] = tuple(token.content for token in added if token.special)
        self.path, self.content = path, content

    def __reduce__(self) -> tuple[type[Tokenizers], tuple[Path, str]]:
        return Tokenizers, (self.path, self.content)

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        tokenizer.check_text(text)
        reader = self._with_special if special_tokens else self.tokenizer
        try:
            ids: list[int] = reader.encode(text, add_special_tokens=False).ids
        except Exception as error:
            raise NanopatchError(f"{self.path} cannot read the text {text!r:.60}: {error}") from None
        return ids

    def decode(self, token_ids: Iterable[int]) -> str:
        return _decoded(token_ids, self._texts, lambda run: self.tokenizer.decode(run, skip_special_tokens=False))

    def token_text(self, token: int) -> str:
        return self._texts.get(token, f"#{token}")

    @functools.cached_property
    def _texts(self) -> dict[int, str]:
        """{id: text}, each different. Where several tokens have one text, or a part of a character, names are shown."""
        names = {id: name for name, id in self.tokenizer.get_vocab().items()}
        texts = self.tokenizer.decode_batch([[id] for id in names], skip_special_tokens=False)
        count = Counter(texts)

        def text_of(id: int, text: str) -> str:
            name = names[id]
            if text == name or (count[text] == 1 and text and "\N{REPLACEMENT CHARACTER}" not in text):
                return text
            return f"{name}#{id}" if name in count else name

        return {id: text_of(id, text) for id, text in zip(names, texts, strict=True)}


def _decoded(token_ids: Iterable[int], known: Container[int], decode: Callable[[list[int]], str]) -> str:
    """Text of token ids, with `#id` for those that have none. Runs are decoded as one: a character may be several."""
    text, run = "", list[int]()
    for token in token_ids:
        if token in known:
            run.append(token)
        else:
            text, run = f"{text}{decode(run)}#{token}", []
    return text + decode(run)


def find(folder: Path, n_vocab: int) -> Vocabulary | None:
    """The vocabulary that the files of a folder say. None if none of `FILES` is there, or none that can be used."""
    for name in FILES:
        if (folder / name).exists():
            try:
                return read(folder / name, n_vocab)
            except MissingPackage:  # the model can be used with token ids
                return None
    return None


def read(path: Path, n_vocab: int) -> Vocabulary | None:
    """The vocabulary in a file: GPT-2's, characters, or any that the package tokenizers reads.

    path: nanoGPT's `meta.pkl`; a `tokenizer.json`; or a `vocab.json`, {text: id}, whose texts are GPT-2's (or GPT-2's
    and more) or single characters. None if it is a `vocab.json` of another kind: it does not say how text is cut.

    Raises NanopatchError if the file cannot be read, or if it has ids outside the model's.
    """
    try:
        if path.suffix == ".pkl":
            with opened(path) as file:
                content = unpickle(file, path)
            ids = content.get("stoi") if isinstance(content, dict) else None
            if not isinstance(ids, dict) or not _is_characters(ids):
                raise NanopatchError(f"{path} holds no characters: it must be a dict with 'stoi', {{character: id}}")
            return _characters(path, ids, n_vocab)
        content = read_json(path)
    except FileNotFoundError:
        raise NanopatchError(f"{path} is missing: give the vocabulary's file, or 'gpt2'") from None
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(model, dict):
        if n_vocab >= tokenizer.N_VOCAB and tokenizer.holds_gpt2(model.get("vocab")) and _cuts_as_gpt2(content):
            return GPT2()
        found = Tokenizers(path, read_text(path))
        largest = max(found.tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
        if largest >= n_vocab:
            raise NanopatchError(
                f"{path} has ids up to {largest}, and this model's are 0 to {n_vocab - 1}: it is another's"
            )
        return found
    if n_vocab >= tokenizer.N_VOCAB and tokenizer.holds_gpt2(content):
        return GPT2()
    return _characters(path, content, n_vocab) if _is_characters(content) else None


def named(name: PathLike, n_vocab: int) -> Vocabulary:
    """The vocabulary that a user names: "gpt2", or a file. Raises NanopatchError if it does not fit the model."""
    if str(name) != "gpt2":
        found = read(expand(name), n_vocab)
        if found is None:
            raise NanopatchError(f"{name} does not say how text is cut into tokens: give a tokenizer.json")
        return found
    if n_vocab < tokenizer.N_VOCAB:
        raise NanopatchError(
            f"this model has {n_vocab} tokens, and GPT-2's vocabulary {tokenizer.N_VOCAB}: it is another"
        )
    return GPT2()


def _cuts_as_gpt2(content: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` with GPT-2's vocabulary changes no text first, such as to lower case."""
    before = content.get("pre_tokenizer") or {"type": "ByteLevel"}
    plain = before.get("type") == "ByteLevel" and not before.get("add_prefix_space") and before.get("use_regex", True)
    return content.get("normalizer") is None and bool(plain)


def _is_characters(ids: Any) -> bool:
    return isinstance(ids, dict) and bool(ids) and all(isinstance(c, str) and len(c) == 1 for c in ids)


def _characters(path: Path, ids: Mapping[str, Any], n_vocab: int) -> Characters:
    for character, id in ids.items():
        if type(id) is not int or not 0 <= id < n_vocab:
            raise NanopatchError(
                f"{path}: {character!r} has the id {id!r:.30}, and this model's are 0 to {n_vocab - 1}"
            )
    if len(set(ids.values())) < len(ids):
        raise NanopatchError(f"{path}: two characters have the same id")
    return Characters(ids)
