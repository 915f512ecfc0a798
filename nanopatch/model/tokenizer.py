"""GPT-2's byte-pair encoding: text <-> token ids.

The encoding is tiktoken's. It is built from the published rank file `data/r50k_base.tiktoken`, which ships with the
package. So nothing is downloaded and no cache folder is written. (tiktoken's own `get_encoding("gpt2")` downloads the
same ranks at the first use.)
"""

import functools
import numbers
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NanopatchError, one_line

if TYPE_CHECKING:
    from tiktoken import Encoding

RANK_FILE = Path(__file__).parent.parent / "data" / "r50k_base.tiktoken"
N_VOCAB = 50257  # 50,256 merged byte strings and <|endoftext|>
ENDOFTEXT = "<|endoftext|>"
ENDOFTEXT_ID = 50256

# How GPT-2 cuts text into words before it merges bytes, from `encoder.py` of the published GPT-2 code. tiktoken
# writes it with possessive quantifiers, which give the same pieces faster.
PIECES = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@functools.cache
def encoding() -> "Encoding":
    """The `tiktoken.Encoding` of GPT-2, built once per process from the shipped rank file."""
    import tiktoken

    special = {ENDOFTEXT: ENDOFTEXT_ID}
    return tiktoken.Encoding(
        "gpt2", pat_str=PIECES, mergeable_ranks=_ranks(), special_tokens=special, explicit_n_vocab=N_VOCAB
    )


def encode(text: str, special_tokens: bool = False) -> list[int]:
    """Token ids of `text`. `<|endoftext|>` in the text is ordinary text, unless `special_tokens=True`.

    Examples
    --------
    >>> encode("Hello, world!")
    [15496, 11, 995, 0]
    >>> len(encode("<|endoftext|>")), encode("<|endoftext|>", special_tokens=True)
    (7, [50256])
    """
    check_text(text)
    return encoding().encode(text, allowed_special={ENDOFTEXT} if special_tokens else set(), disallowed_special=())


def check_text(text: str) -> None:
    """Raise NanopatchError if a text holds half of a character, which tiktoken would read as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NanopatchError(
            f"character {error.start} of the text {text!r:.60} is a byte that is not UTF-8, or half of a character: "
            "give text in UTF-8"
        ) from None


def decode(token_ids: Iterable[int]) -> str:
    """Text of token ids. Bytes that are only part of a character become U+FFFD.

    Raises NanopatchError if one of them is not a token id.

    Examples
    --------
    >>> decode([15496, 11, 995, 0])
    'Hello, world!'
    """
    token_ids = list(token_ids)
    for token in token_ids:
        if isinstance(token, bool) or not isinstance(token, numbers.Integral) or not 0 <= token < N_VOCAB:
            raise NanopatchError(f"{token!r:.60} is not a token id: give whole numbers from 0 to {N_VOCAB - 1}")
    return encoding().decode(token_ids)


def token_text(token: int) -> str:
    r"""The text of one token. Bytes that are only part of a character stand as such: an emoji may be two tokens.

    Examples
    --------
    >>> [token_text(token) for token in encode("😀!")]
    ['\\xf0\\x9f\\x98', '\\x80', '!']
    """
    decode([token])  # its checks
    return encoding().decode_single_token_bytes(int(token)).decode("utf-8", errors="backslashreplace")


def visible(token: str) -> str:
    """A token's text with invisible characters made visible: a space as ␣, control characters escaped."""
    return one_line(token).replace(" ", "␣")


def is_text(value: Any) -> bool:
    """Whether a value is text without lone surrogates, which stand for bytes that are not UTF-8."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def holds_gpt2(vocabulary: Any) -> bool:
    """Whether a vocabulary, {text: id} as `vocab.json` has it, is GPT-2's, perhaps with more tokens after its own."""
    return isinstance(vocabulary, dict) and _published_vocabulary().items() <= vocabulary.items()


def _ranks() -> dict[bytes, int]:
    """{byte string: token id} of the shipped rank file. Each line is a base64 string and a number."""
    from base64 import b64decode

    lines = RANK_FILE.read_bytes().splitlines()
    return {b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def _published_vocabulary() -> dict[str, int]:
    """GPT-2's `vocab.json` as a dict, with bytes spelled as `bytes_to_unicode` in its `encoder.py` spells them.

    The printable Latin-1 characters stand for themselves. The other 68 bytes become U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    vocabulary = {"".join(spelling[byte] for byte in token): rank for token, rank in _ranks().items()}
    return vocabulary | {ENDOFTEXT: ENDOFTEXT_ID}
