"""GPT-2's byte-pair encoding: text <-> token ids.

The encoding is tiktoken's, built from the published rank file `data/r50k_base.tiktoken` that
ships with the package, so nothing is fetched and no cache folder is written. (tiktoken's own
`get_encoding("gpt2")` downloads the same ranks on first use.)
"""

import base64
import functools
import json
import numbers
from pathlib import Path

from ..errors import NanopatchError

RANK_FILE = Path(__file__).parent.parent / "data" / "r50k_base.tiktoken"
N_VOCAB = 50257  # 50,256 merged byte strings and <|endoftext|>
ENDOFTEXT = "<|endoftext|>"
ENDOFTEXT_ID = 50256

# How GPT-2 cuts text into words before merging: `encoder.py` of the published GPT-2 code. tiktoken
# spells it with possessive quantifiers, which give the same pieces faster.
PIECES = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@functools.cache
def encoding():
    """The `tiktoken.Encoding` of GPT-2, built once per process from the shipped rank file."""
    import tiktoken

    return tiktoken.Encoding(
        name="gpt2",
        pat_str=PIECES,
        mergeable_ranks=_ranks(),
        special_tokens={ENDOFTEXT: ENDOFTEXT_ID},
        explicit_n_vocab=N_VOCAB,
    )


def encode(text, special_tokens=False):
    """Token ids (a list of int) of `text`.

    `<|endoftext|>` in the text is ordinary text, seven tokens long, unless `special_tokens=True`.
    """
    return encoding().encode(text, allowed_special={ENDOFTEXT} if special_tokens else set(), disallowed_special=())


def decode(token_ids):
    """Text of some token ids. Bytes that are only part of a character become U+FFFD.

    Raises NanopatchError for what is not the id of a token.
    """
    token_ids = list(token_ids)
    for token in token_ids:
        if isinstance(token, bool) or not isinstance(token, numbers.Integral) or not 0 <= token < N_VOCAB:
            raise NanopatchError(f"{token!r:.60} is not a token id: they are the whole numbers from 0 to {N_VOCAB - 1}")
    return encoding().decode(token_ids)


def is_gpt2_vocabulary(folder):
    """Whether the tokenizer files in a checkpoint's folder hold GPT-2's vocabulary.

    Looks at `vocab.json`, else at the vocabulary inside `tokenizer.json`. None if neither is there.
    Raises NanopatchError where the one it looks at cannot be read.
    """
    folder = Path(folder)
    for file_name in ("vocab.json", "tokenizer.json"):
        try:
            content = json.loads((folder / file_name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise NanopatchError(f"cannot read {folder / file_name}: {error}") from None
        if file_name == "tokenizer.json":
            model = content.get("model") if isinstance(content, dict) else None
            content = model.get("vocab") if isinstance(model, dict) else None
        return content == _published_vocabulary()
    return None


def _ranks():
    """{byte string: token id} of the shipped rank file, whose lines are a base64 string and a number."""
    lines = RANK_FILE.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def _published_vocabulary():
    """GPT-2's `vocab.json` as a dict, spelled as `bytes_to_unicode` in its `encoder.py` spells bytes:

    the printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    vocabulary = {"".join(spelling[byte] for byte in token): rank for token, rank in _ranks().items()}
    return vocabulary | {ENDOFTEXT: ENDOFTEXT_ID}
