"""Short names for the types that many modules share. Shapes stand in docstrings and comments, not in types."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

#: A NumPy array of any dtype.
Array = np.ndarray[Any, np.dtype[Any]]
#: A prompt: text, token ids, or ids of shape (n_tokens,) or (batch, n_tokens).
Prompt = str | Sequence[int] | Sequence[Sequence[int]] | Array
#: Which arrays of the forward pass: one name, several names, or None for all.
Sites = str | Iterable[str] | None
#: The path of a file or a folder.
PathLike = str | os.PathLike[str]
