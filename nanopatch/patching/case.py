"""The two sides of a patch: the base run, which is patched into, and the donors, which are patched from.

Base and donor are the two prompts of an experiment, in either direction. Or a corruption takes the place of the
second prompt: noise makes a corrupted run of the clean one; zero, a mean or a resample are donors without a run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import NanopatchError
from ..experiments.align import Columns
from ..experiments.corruption import Corruption, Mean, Noise, Resample, Zero
from ..experiments.experiment import Experiment, ExperimentTokens, spaced_token
from ..experiments.metrics import Metric, Target, measure, rounding_of
from ..model.generation import random_generator
from ..model.gpt2 import Model
from ..model.layers import softmax
from ..model.sites import ATTENTION_SITES, BLOCK_SITES, Run, known_sites, record
from ..results.prediction import Prediction
from ..results.sweep import DIRECTIONS
from ..types import Array, Sites
from .reach import changed_rows

#: Prompts of at most this many tokens run as a batch. With longer ones, a batch records much that is not needed.
SHORT = 32


@dataclass(eq=False, repr=False)
class Runs:
    """The unpatched runs of one experiment.

    number: that of the experiment among many; each draws its own random numbers. columns: the aligned positions.
    corrupted: None for an ablation, which puts in values that no run has.
    """

    model: Model
    experiment: Experiment
    number: int
    corruption: Corruption | None
    tokens: ExperimentTokens
    columns: Columns
    clean: Run
    corrupted: Run | None
    made: dict[str, list[Array]] = field(default_factory=dict)  # `replacements`, by site

    @functools.cached_property
    def prediction(self) -> Prediction:
        """What the clean run says next, beside the answer."""
        logits = self.model.unembed(self.clean.resid_post[-1][-1:])[0]
        return predict(self.model, self.experiment, self.tokens, logits)

    def replacements(self, site: str) -> list[Array]:
        """What an ablation puts in place of the clean run's own arrays: arrays like them. Each cell draws one."""
        if site not in self.made:
            self.made[site] = self._replacements(site)
        return self.made[site]

    def _replacements(self, site: str) -> list[Array]:
        own, corruption = getattr(self.clean, site), self.corruption  # (n_layer, ...)
        if isinstance(corruption, Zero):
            return [np.where(np.isneginf(own), own, np.zeros_like(own))]  # what is masked in scores stays masked
        assert isinstance(corruption, (Mean, Resample)), f"no rule for {corruption!r}: write one here"
        if not corruption.prompts:
            raise NanopatchError("prompts=(): give at least one prompt to take activations from")
        prompts = [self.experiment.tokenize(self.model, prompt) for prompt in corruption.prompts]
        arrays = [getattr(self.model.run(prompt, sites=site), site) for prompt in prompts]
        if isinstance(corruption, Mean) and not corruption.per_position:
            if site in ATTENTION_SITES:
                raise NanopatchError(f"{site} has no mean over positions: use per_position=True")
            mean = np.array([array.mean(axis=1) for array in arrays]).mean(axis=0, dtype=np.float64)
            return [np.broadcast_to(mean[:, None], own.shape).astype(own.dtype)]
        for number, array in enumerate(arrays):
            if array.shape != own.shape:
                n_tokens, wanted = (a.shape[3 if site in ATTENTION_SITES else 1] for a in (array, own))
                hint = ", or per_position=False" if isinstance(corruption, Mean) else ""
                raise NanopatchError(
                    f"prompt {number} has {n_tokens} tokens, the clean prompt {wanted}: use prompts of its length{hint}"
                )
        if isinstance(corruption, Resample):
            return arrays
        return [np.mean(arrays, axis=0, dtype=np.float64).astype(own.dtype)]

    def draws(self, site: str, n: int) -> list[int]:
        """Which of the replacements each of n cells takes."""
        if not isinstance(self.corruption, Resample):
            return [0] * n
        random = generator(self.corruption.seed, self.number)
        return [int(random.integers(len(self.replacements(site)))) for _ in range(n)]


@dataclass(eq=False, repr=False)
class Case:
    """One direction of one experiment: everything that is known before the first patch.

    base: the record of the run patched into. base_logits: its logits that some metric needs. partners: for each
    column, the position in the base run and in the donor. rows: the base run's position at each column, None where
    both runs hold the same. rows_before_attention: like rows, before the attention of block 0 (see `changed_rows`).
    values: every metric of the unpatched runs, under "clean" and "corrupted". rounding: of every metric; values closer
    than that may be equal.
    """

    runs: Runs
    direction: str
    base: Run
    base_logits: Array
    partners: Columns
    rows: list[int | None]
    rows_before_attention: list[int | None]
    metrics: list[Metric]
    target: Target
    values: dict[str, list[float]]
    rounding: list[float]

    @property
    def model(self) -> Model:
        return self.runs.model

    @property
    def n_tokens(self) -> int:
        return int(self.base.resid_pre.shape[1])

    @property
    def baseline(self) -> list[float]:
        """The metrics of the base run."""
        return self.values[DIRECTIONS[self.direction][0]]

    @property
    def answers(self) -> list[int] | None:
        """The token ids whose logits are enough for all metrics; None for the whole vocabulary."""
        return answers_of(self.metrics, self.runs.tokens)

    @property
    def last_only(self) -> bool:
        """Whether the logits of the last position are enough for all metrics."""
        return all(metric.needs != "all" for metric in self.metrics)

    def measure(self, logits: Array) -> list[float]:
        return measure(self.metrics, logits, self.target, answers_only=self.answers is not None)

    def donors(self, site: str) -> list[Array]:
        """What may be put in at a site: arrays shaped as the base run's own, (n_layer, ...)."""
        runs = self.runs
        if runs.corrupted is None:
            return runs.replacements(site)
        donor = runs.clean if self.base is runs.corrupted else runs.corrupted
        return [transplant(getattr(self.base, site), getattr(donor, site), self.partners)]


def run_both(
    model: Model, experiment: Experiment, number: int, corruption: Corruption | None, sites: Mapping[str, Sites]
) -> Iterator[Runs]:
    """The unpatched runs of an experiment; with noise, those of one seed after another.

    number: that of the experiment among many. sites: what the clean and the corrupted run record.
    """
    tokens = tokens_of(model, experiment, corruption)
    runs = functools.partial(Runs, model, experiment, number, corruption, tokens)
    if corruption is None:
        clean, corrupted = run_prompts(model, tokens[:2], [sites["clean"], sites["corrupted"]])
        yield runs(experiment.columns(model), clean, corrupted)
        return
    clean = model.run(tokens.clean, sites=sites["clean"])
    columns: Columns = [(position, position) for position in range(len(tokens.clean))]
    if not isinstance(corruption, Noise):
        yield runs(columns, clean, None)
        return
    positions = list(corruption.positions)
    if not 0 <= positions[0] <= positions[-1] < len(columns):
        raise NanopatchError(f"noise at positions {positions}: give positions of the prompt, 0 to {len(columns) - 1}")
    for seed in corruption.seeds:
        resid = model.embed(tokens.clean)
        sigma, shape = corruption.sigma * float(model.wte.std()), (len(positions), model.d_model)
        resid[positions] += generator(seed, number).normal(0, sigma, shape).astype(model.dtype)
        noisy = record(model.steps_from(0, resid, sites=sites["corrupted"]), sites=sites["corrupted"])
        noisy.tokens, noisy.model = clean.tokens, model
        yield runs(columns, clean, noisy)


def run_prompts(model: Model, prompts: Sequence[Array], sites: Sequence[Sites]) -> list[Run]:
    """A run of each prompt, recording its own `sites`. Short prompts of one length read each weight once for all."""
    if len({len(prompt) for prompt in prompts}) > 1 or len(prompts[0]) > SHORT:
        return [model.run(prompt, sites=own) for prompt, own in zip(prompts, sites, strict=True)]
    batch = model.run(np.stack(prompts), sites=frozenset().union(*map(known_sites, sites)))
    runs = []
    for i, prompt in enumerate(prompts):
        arrays = {name: getattr(batch, name) for name in batch.names}
        own = {name: array[:, i] if name in BLOCK_SITES else array[i] for name, array in arrays.items()}
        runs.append(Run(own, prompt, model))
    return runs


def tokens_of(model: Model, experiment: Experiment, corruption: Corruption | None) -> ExperimentTokens:
    """The experiment's tokens. With a corruption, its corrupted prompt is not used, whatever it is."""
    return (replace(experiment, corrupted=experiment.clean) if corruption else experiment).tokens(model)


def predict(model: Model, experiment: Experiment, tokens: ExperimentTokens, logits: Array) -> Prediction:
    """What the clean run says next, beside the answer. logits: (n_vocab,), at its last token."""
    probabilities = softmax(logits.astype(np.float64))
    predicted, answer = int(probabilities.argmax()), tokens.answer
    rank = None if answer is None else int((logits > logits[answer]).sum())
    spaced_rank = None
    if isinstance(experiment.answer, str) and (spaced := spaced_token(model, experiment.answer)) is not None:
        spaced_rank = int((logits > logits[spaced]).sum())
    texts = [text for text in (experiment.clean, experiment.corrupted) if isinstance(text, str)]
    special_tokens = model.vocabulary.special_tokens if model.vocabulary else ()
    unread = []
    if texts and model.trained_tokens is not None:
        unread = [t for t in np.concatenate(tokens[:2]).tolist() if t not in model.trained_tokens]
    return Prediction(
        answer=None if answer is None else model.token_strings(answer)[0],
        rank=rank,
        probability=None if answer is None else float(probabilities[answer]),
        predicted=model.token_strings(predicted)[0],
        predicted_probability=float(probabilities[predicted]),
        spaced_rank=spaced_rank if spaced_rank is not None and rank is not None and spaced_rank < rank else None,
        unread=tuple(dict.fromkeys(model.token_strings(unread))),
        as_text=not experiment.special_tokens and any(special in text for text in texts for special in special_tokens),
        n_unpredicted=int(bool(rank)),
    )


def check_answers(metrics: Sequence[Metric], tokens: ExperimentTokens) -> None:
    """NanopatchError if a metric reads an answer that the experiment lacks."""
    for metric in metrics:
        if metric.reads_answers and None in (tokens[2:] if metric.needs == "answers" else tokens[2:3]):
            raise NanopatchError(
                f"{metric.name} compares answers: give Experiment(..., answer=, wrong_answer=) (--answer, --wrong), or "
                "take a metric that reads none, such as kl_divergence"
            )


def generator(seed: int, number: int) -> np.random.Generator:
    """The random generator of one experiment among many. That of the first depends on the seed alone."""
    random_generator(seed)  # checks the seed
    return np.random.default_rng([seed, number])


def make_case(runs: Runs, direction: str, metrics: list[Metric]) -> Case:
    """One direction of an experiment that has been run."""
    model, tokens = runs.model, runs.tokens
    by_name = {"clean": runs.clean} | ({"corrupted": runs.corrupted} if runs.corrupted else {})
    base_name, donor_name = DIRECTIONS[direction]
    base = by_name[base_name]
    answers, every = answers_of(metrics, tokens), any(metric.needs == "all" for metric in metrics)
    if every and runs.corruption is None and len(tokens.clean) != len(tokens.corrupted):
        raise NanopatchError(
            "a metric of all positions needs prompts of one length: these have "
            f"{len(tokens.clean)} and {len(tokens.corrupted)} tokens"
        )
    check_answers(metrics, tokens)
    # For the unpatched runs, as for the patched ones, only the logits that some metric needs are computed.
    logits = {n: model.unembed(run.resid_post[-1][0 if every else -1 :], answers) for n, run in by_name.items()}
    # Every run is measured like the base run: a metric that reads the prompt reads the base run's tokens.
    clean_logits = None if answers else logits["clean"][-1]
    target = Target(tokens.answer, tokens.wrong_answer, base.tokens, clean_logits)  # type: ignore[arg-type]
    values = {name: measure(metrics, of_run, target, answers is not None) for name, of_run in logits.items()}
    roundings = [rounding_of(metrics, values[n], of_run, target, answers is not None) for n, of_run in logits.items()]
    partners = [pair[::-1] if direction == "denoise" else pair for pair in runs.columns]
    everywhere: list[int | None] = [position for position, _ in partners]
    rows, rows_before_attention = everywhere, everywhere
    if runs.corrupted is not None:
        rows, rows_before_attention = changed_rows(base.resid_pre[0], by_name[donor_name].resid_pre[0], partners)
    return Case(
        runs=runs,
        direction=direction,
        base=base,
        base_logits=logits[base_name],
        partners=partners,
        rows=rows,
        rows_before_attention=rows_before_attention,
        metrics=metrics,
        target=target,
        values=values,
        rounding=np.max(roundings, axis=0).tolist(),
    )


def answers_of(metrics: Sequence[Metric], tokens: ExperimentTokens) -> list[int] | None:
    return list(tokens[2:]) if all(m.needs == "answers" for m in metrics) else None  # type: ignore[arg-type]


def transplant(base: Array, donor: Array, partners: Columns) -> Array:
    """What a patch copies, shaped as `base`: at each position that has a partner, what `donor` holds at the partner.

    base, donor: one site's arrays of both runs, layer axis first.
    """
    if all(i == j for i, j in partners):
        return donor
    moved = base.copy()
    for i, j in partners:
        if i is not None and j is not None:
            moved[:, i] = donor[:, j]
    return moved


def check_equal_positions(model: Model, experiment: Experiment, what: str, instead: str = "") -> None:
    """NanopatchError unless each position of one prompt is paired with the same position of the other."""
    clean, corrupted, *_ = experiment.tokens(model)
    if len(clean) != len(corrupted) or any(i != j for i, j in experiment.columns(model)):
        raise NanopatchError(
            f"{what} needs prompts with the same number of tokens, paired position by position; these have "
            f"{len(clean)} and {len(corrupted)} tokens{instead}"
        )
