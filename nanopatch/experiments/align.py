"""Which position of one prompt is paired with which position of the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import NanopatchError

ALIGNMENTS = (None, "diff")
#: Pairs (position in clean, position in corrupted); None where a position has no partner.
Columns = list[tuple[int | None, int | None]]


def align(
    clean: Iterable[int], corrupted: Iterable[int], how: str | None = None, show: Callable[[list[int]], Any] = str
) -> Columns:
    """Pair the positions of two prompts, in reading order.

    Parameters
    ----------
    clean, corrupted : token ids, (n_tokens,) each
    how : None or "diff"
        None pairs equal positions. "diff" compares the two sequences as a file comparison does. Equal runs of tokens
        are paired. A run that replaces another is paired with it from the right end, where the last token of a name
        stands; the surplus on the left has no partner.
    show : callable
        Token ids -> text, for the error.

    Returns
    -------
    list of (int or None, int or None)
        Pairs (position in clean, position in corrupted); None where a position has no partner.

    Raises
    ------
    NanopatchError
        If `how` is unknown, or if it is None and the lengths differ.

    Examples
    --------
    >>> align([5, 6, 7], [5, 9, 7])
    [(0, 0), (1, 1), (2, 2)]
    >>> align([1, 7, 2], [1, 2], "diff")
    [(0, 0), (1, None), (2, 1)]
    """
    check_alignment(how)
    clean, corrupted = [int(token) for token in clean], [int(token) for token in corrupted]
    if how is None:
        if len(clean) != len(corrupted):
            raise NanopatchError(
                f"the prompts have {len(clean)} and {len(corrupted)} tokens (clean {show(clean)}; corrupted "
                f"{show(corrupted)}), so equal positions cannot be paired: give prompts of one length, or "
                'Experiment(..., align="diff") (--align diff on the command line)'
            )
        return [(position, position) for position in range(len(clean))]
    from difflib import SequenceMatcher

    pairs: Columns = []
    for _, i, i_end, j, j_end in SequenceMatcher(None, clean, corrupted, autojunk=False).get_opcodes():
        n_pairs = min(i_end - i, j_end - j)
        pairs += [(position, None) for position in range(i, i_end - n_pairs)]
        pairs += [(None, position) for position in range(j, j_end - n_pairs)]
        pairs += zip(range(i_end - n_pairs, i_end), range(j_end - n_pairs, j_end), strict=True)
    return pairs


def check_alignment(how: str | None) -> None:
    if how not in ALIGNMENTS:
        raise NanopatchError(f'unknown alignment {how!r}: give align="diff", or leave it out for equal positions')
