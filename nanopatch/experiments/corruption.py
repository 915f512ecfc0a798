"""What takes the place of a second prompt: zero, a mean, a resample, or noise.

An ablation replaces activations of the clean run by values that carry no information about its prompt, and asks what
is needed. Causal tracing (Meng et al. 2022, arXiv 2202.05262) corrupts the token embeddings with noise, and asks what
is enough to restore the run. Each is a value, which `nanopatch.sweep` and `nanopatch.attribute` take as `corruption`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from ..errors import NanopatchError, count


@dataclass(frozen=True)
class Zero:
    """Zero in place of the clean run's own activations (an ablation)."""

    name: ClassVar[str] = "zero"

    def __str__(self) -> str:
        return "zero"


@dataclass(frozen=True)
class Mean:
    """The mean over `prompts` in place of the clean run's own activations (an ablation).

    prompts: texts or token ids. per_position: True takes the mean at each position, and the prompts need as many
    tokens as the clean prompt. False takes the mean over all positions too.
    """

    prompts: Sequence[Any]
    per_position: bool = True
    name: ClassVar[str] = "mean"

    def __post_init__(self) -> None:
        _check_prompts(self)
        if not isinstance(self.per_position, (bool, np.bool_)):
            raise NanopatchError(f"per_position={self.per_position!r:.60}: True or False is expected")

    def __str__(self) -> str:
        return f"the mean over {count(len(self.prompts), 'prompt')}" if self.prompts else "the mean over prompts"


@dataclass(frozen=True)
class Resample:
    """The activations of another prompt, drawn for each cell from `prompts`, with `seed` (an ablation).

    prompts: texts or token ids, with as many tokens as the clean prompt.
    """

    prompts: Sequence[Any]
    seed: int = 0
    name: ClassVar[str] = "resample"

    def __post_init__(self) -> None:
        _check_prompts(self)

    def __str__(self) -> str:
        return "activations of another prompt"


@dataclass(frozen=True)
class Noise:
    """A corrupted run that is the clean one with Gaussian noise on some token embeddings (causal tracing).

    positions: where the embeddings get noise. sigma: the noise's standard deviation, in standard deviations of the
    entries of wte. seeds: each seed draws one noise, and the result is the mean over the seeds.
    """

    positions: Sequence[int]
    sigma: float = 3.0
    seeds: Sequence[int] = tuple(range(10))
    name: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        for numbers in (self.positions, self.seeds):
            if not np.iterable(numbers) or not all(isinstance(number, Integral) for number in numbers):
                raise NanopatchError(
                    f"positions={self.positions!r} and seeds={self.seeds!r}: lists of whole numbers are expected"
                )
        if not isinstance(self.sigma, Real) or not 0 < self.sigma < np.inf:
            raise NanopatchError(f"sigma={self.sigma}: a number above 0 is expected")
        object.__setattr__(self, "positions", tuple(sorted({int(position) for position in self.positions})))
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(int(seed) for seed in self.seeds)))
        if not self.positions or not self.seeds:
            raise NanopatchError("noise needs at least one position and at least one seed")

    def __str__(self) -> str:
        positions = f"position{'s' * (len(self.positions) > 1)} {', '.join(map(str, self.positions))}"
        return (
            f"Gaussian noise of {self.sigma:g} standard deviation{'s' * (self.sigma != 1)} on the embeddings of "
            f"{positions}, averaged over {count(len(self.seeds), 'seed')}"
        )


#: None stands for the experiment's own corrupted prompt.
Corruption = Zero | Mean | Resample | Noise
#: The corruptions that put values into the clean run. With these there is no corrupted run.
ABLATIONS = (Zero, Mean, Resample)


def to_dict(corruption: Any) -> dict[str, Any] | None:
    """Its kind and fields as JSON can hold them."""
    if corruption is None:
        return None
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(corruption).items()}
    return {"kind": corruption.name, **fields}


def _check_prompts(corruption: Mean | Resample) -> None:
    """Make prompts a tuple; NanopatchError unless they are a list. (Empty, if an old results file lacks them.)"""
    prompts = corruption.prompts
    if isinstance(prompts, str) or not np.iterable(prompts):
        raise NanopatchError(f"prompts={prompts!r:.60}: a list of prompts is expected, with at least one")
    as_lists: list[Any] = []
    for prompt in prompts:
        try:
            as_lists.append(prompt if isinstance(prompt, str) else np.asarray(prompt).tolist())
        except ValueError:  # rows of unequal lengths
            raise NanopatchError(f"prompts: each is a text or a list of token ids, not {prompt!r:.60}") from None
    object.__setattr__(corruption, "prompts", tuple(as_lists))
