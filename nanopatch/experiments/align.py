"""Which position of one prompt stands for which position of the other."""

import difflib

from ..errors import NanopatchError

ALIGNMENTS = (None, "diff")


def align(clean, corrupted, how=None, show=str):
    """Pairs (position in clean, position in corrupted) in reading order; None where one side has no partner.

    clean, corrupted: token ids, (n_tokens,) each. how: None pairs equal positions, and refuses prompts
    of unequal lengths; "diff" compares the two sequences as a file comparison does: equal runs are
    matched, and a run that replaces another is matched from the right ends of both, where the subword
    that completes a name stands; the surplus stays without partner. show: token ids -> text, for the
    error.
    """
    clean, corrupted = [int(token) for token in clean], [int(token) for token in corrupted]
    if how not in ALIGNMENTS:
        raise NanopatchError(f'unknown alignment {how!r}: give align="diff", or leave it out for equal positions')
    if how is None:
        if len(clean) != len(corrupted):
            raise NanopatchError(
                f"the prompts have {len(clean)} and {len(corrupted)} tokens, so position j of one is not position j "
                f"of the other (clean {show(clean)}; corrupted {show(corrupted)}): use prompts of one length, or "
                'align="diff" (--align diff on the command line)'
            )
        return [(position, position) for position in range(len(clean))]
    pairs = []
    for _, i, i_end, j, j_end in difflib.SequenceMatcher(None, clean, corrupted, autojunk=False).get_opcodes():
        n_pairs = min(i_end - i, j_end - j)
        pairs += [(position, None) for position in range(i, i_end - n_pairs)]
        pairs += [(None, position) for position in range(j, j_end - n_pairs)]
        pairs += zip(range(i_end - n_pairs, i_end), range(j_end - n_pairs, j_end), strict=True)
    return pairs
