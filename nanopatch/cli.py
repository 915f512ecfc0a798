"""The command line: `nanopatch demo`, `patch`, `attribute`, `heads`, `path`, `edges`, `lens`, `direct`, `top`, ...

Results go to stdout, progress and errors to stderr. An error is one line. The exit status is 0; 2 for an option or an
argument that the command does not have or lacks; 1 for any other error, and for a failed check of `verify`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from . import __version__
from .circuits.run import faithfulness
from .errors import NanopatchError, one_line
from .experiments.align import Columns, align
from .experiments.corruption import Corruption, Mean, Noise, Resample, Zero
from .experiments.experiment import NAMED, Experiment
from .experiments.metrics import METRICS
from .experiments.pairs import read_pairs
from .experiments.patch import BETWEEN, Patch
from .explore.file import SITES, make_page
from .files import check_writable, expand, read_text, write_whole
from .gradients.attribution import attribute
from .gradients.edges import circuit, edge_attribution
from .lenses.attention import attention
from .lenses.direct import direct_logit_attribution
from .lenses.heads import head_scores
from .lenses.logit import logit_lens
from .lessons.course import find as find_lesson
from .lessons.course import lessons
from .model import hub
from .model.checkpoint import load
from .model.convert import check_new_folder, save_checkpoint
from .model.generation import Round, generate, generate_steps
from .model.gpt2 import Model
from .model.layers import ACTIVATIONS, top_tokens
from .model.sites import ATTENTION_SITES, BLOCK_SITES, Run, check_position
from .model.tokenizer import visible
from .notebook import printable
from .patching.average import Experiments, Key
from .patching.case import predict
from .patching.edit import Edit
from .patching.folder import RunFolder, merge
from .patching.many import Share, over
from .patching.sweep import path_patch, sweep
from .results import plot
from .results.base import ENDINGS, as_csv, jsonable, write_text
from .results.comparison import Comparison
from .results.direct import KINDS, DirectAttribution
from .results.edges import BY
from .results.lens import SHOWN
from .results.matrix import number
from .results.panels import Panels
from .results.sweep import DIRECTIONS
from .types import Array, Sites
from .verify import picture, verify, verify_debug_state

PICTURES = tuple(f".{file_format}" for file_format in plot.FORMATS)
RUNS = ("clean", "corrupted", "difference")
MODEL_HELP = "nano (the default), gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, org/name, or a folder"


def main(arguments: list[str] | None = None) -> int:
    """Run one command line, by default that of this process, and return its exit status."""
    for name in ("stdout", "stderr"):  # one that the shell has closed (2>&-) is None, and its text would go astray
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show ␣ or █ gets ? instead
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    options = Namespace()
    try:
        options = parser().parse_args(arguments)
        status = options.command(options)
        sys.stdout.flush()
        return status or 0
    except NanopatchError as error:
        print(f"nanopatch: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (`| head`) has closed the pipe: no error, but nothing more can be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # files have their own errors: this is stdout, on a full disk, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"nanopatch: cannot write to stdout: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f": {folder_progress(options.folder)}" if getattr(options, "folder", None) else ""
        print(f"nanopatch: interrupted{kept}", file=sys.stderr)
        return 130


def folder_progress(folder: str) -> str:
    try:
        return RunFolder.at(folder).progress
    except NanopatchError:  # it was interrupted before there was one, or there are several inside
        return f"what is done is kept in {folder}"


# ---- the grammar ---------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors in one line. Options cannot be abbreviated, so none is mistaken for another."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        usage_error(message)


def parser() -> Parser:
    """The command line's grammar."""
    whole = Parser(prog="nanopatch", description="Activation patching in GPT-2, in plain NumPy.")
    whole.add_argument("--version", action="version", version=f"nanopatch {__version__}")
    commands = whole.add_subparsers(required=True, metavar="command")

    def add(name: str, command: Callable[[Namespace], int | None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        return sub

    demo = add("demo", demo_command, "run the named experiments and write their heatmaps")
    add_model(demo)
    demo.add_argument("-o", "--output", default="nanopatch-demo", metavar="FOLDER", help="picture folder (%(default)s)")

    patch = add("patch", patch_command, "patch one site piece by piece")
    add_question(patch, ENDINGS)
    add_pieces(patch)

    estimate = add("attribute", attribute_command, "estimate the grid of patch from derivatives (attribution patching)")
    add_question(estimate, ENDINGS)
    add_pieces(estimate)
    estimate.add_argument("--steps", type=int, default=1, metavar="N", help="steps; 2 or more: integrated gradients")
    estimate.add_argument("--against-exact", metavar="FILE", help="also patch, and draw estimate against exact")

    heads = add(
        "heads",
        heads_command,
        "patch every head's z, q, k, v and pattern, at all positions at once; or score what every head attends to",
    )
    add_question(heads, ENDINGS)
    heads.add_argument(
        "--scores",
        action="store_true",
        help="score attention to previous, duplicate and other tokens; beside an experiment's effects if one is given",
    )
    heads.add_argument(
        "--prompts",
        dest="scored",
        metavar="FILE",
        help="a file with one prompt on each line, for --scores, instead of repeated random tokens",
    )

    page = add("page", page_command, "write the interactive page of one experiment: an HTML file that needs no network")
    add_pair(page)
    page.add_argument("--site", type=names, default=SITES, help=f"{','.join(SITES)} (the default), or others")
    page.add_argument("--direction", choices=("denoise", "noise", "both"), default="denoise", help="(%(default)s)")
    page.add_argument("--metric", type=names, default=["logit_diff"], help=f"{', '.join(METRICS)}; several with commas")
    page.add_argument("-o", "--output", required=True, metavar="FILE", help=".html")

    explore = add("explore", explore_command, "serve the page on this computer, with everything computed as one types")
    add_pair(explore)
    explore.add_argument("--port", type=int, metavar="N", help="the port (8137, or another if that is taken)")
    explore.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")

    course = add("lessons", lessons_command, "list the lessons of the course, or take one as a script or a notebook")
    course.add_argument("number", nargs="?", type=int, metavar="N", help="write lesson N to a file in this folder")
    course.add_argument("--notebook", action="store_true", help="as a notebook for Jupyter, instead of a script")
    course.add_argument("-o", "--output", metavar="FILE", help="another file, .py or .ipynb")

    merged = add("merge", merge_command, "put the parts of a run's folder together")
    merged.add_argument("folder", help="what --folder named")
    merged.add_argument("-o", "--output", action="append", default=[], metavar="FILE", help=" ".join(ENDINGS))
    merged.add_argument("--pairs-output", metavar="FILE", help="what each pair gave: .csv or .npz")
    merged.add_argument("--furthest", type=cell, metavar="CELL", help="the pairs furthest from the mean in a cell: 2,0")
    merged.add_argument("--plot", action="store_true", help="show the picture in a window")

    path = add("path", path_command, "patch the paths from senders to receivers")
    add_question(path, ENDINGS)
    senders_help = "embed, head, head 2, head 2.1, attn 1, mlp ..."
    path.add_argument("--senders", type=names, default=["embed", "head", "mlp"], help=senders_help)
    path.add_argument("--receivers", type=names, default=["logits"], help="logits, q 3, k 3.1, v, mlp 2, resid 3 ...")
    path.add_argument("--between", choices=tuple(BETWEEN), default="frozen", help="what happens to nodes in between")

    edges = add("edges", edges_command, "score the edges between heads and MLPs, and run the circuit of the best edges")
    add_question(edges, (*ENDINGS, ".dot"))
    edges.add_argument("-n", type=int, default=30, metavar="N", help="how many of the best edges to take (%(default)s)")
    edges.add_argument("--steps", type=int, default=1, metavar="N", help="steps; 2 or more: EAP-IG")
    edges.add_argument("--by", choices=BY, default="size", help="the best are the largest, or those that help (signed)")

    lens = add("lens", lens_command, "read the residual stream at every layer and position (logit lens)")
    add_runs(lens, several=True)
    lens.add_argument("--show", choices=SHOWN, default="prediction", help="what each cell shows (%(default)s)")

    attend = add("attention", attention_command, "show where heads look")
    add_runs(attend, several=True)
    attend.add_argument("--layer", type=int, metavar="N", help="one layer (all by default)")
    attend.add_argument("--head", type=int, metavar="N", help="one head of --layer (all by default)")
    attend.add_argument("--weighted", action="store_true", help="attention times the size of what the head moves")

    direct = add(
        "direct",
        direct_command,
        "take a logit difference apart into what each head, MLP and bias writes (direct logit attribution): exact, and "
        "of one run; attribute estimates what patches would do",
    )
    add_runs(direct, several=False)
    direct.add_argument("--pairs", metavar="FILE", help="pairs to average over, .jsonl or .csv, instead of a prompt")
    direct.add_argument("--position", type=int, default=-1, metavar="N", help="where logits are read (%(default)s)")
    direct.add_argument("--split", metavar="PART", help="take one part further apart: mlp 3, or head 2.1")
    direct.add_argument("--kind", choices=KINDS, default="bars", help="what a picture shows (%(default)s)")

    write = add("generate", generate_command, "continue a prompt; or two, and the one patched from the other")
    write.add_argument("prompt", nargs="?", help="the (clean) prompt to continue; or give --experiment")
    write.add_argument("--corrupted", metavar="TEXT", help="a second prompt, to continue both")
    write.add_argument("--experiment", choices=NAMED, help="a named experiment, instead of a prompt")
    write.add_argument("-n", type=int, default=20, metavar="N", help="how many tokens to add (%(default)s)")
    write.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, the default, takes the likeliest"
    )
    write.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    write.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the fewest that add up to P")
    write.add_argument("--stop", metavar="TOKEN", help="stop after this token")
    write.add_argument(
        "--samples", type=int, metavar="N", help="so many continuations, of seeds that follow each other"
    )
    write.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (%(default)s)")
    write.add_argument("--site", choices=BLOCK_SITES, help="also continue one prompt with this array from the other")
    write.add_argument("--direction", choices=tuple(DIRECTIONS), help="denoise, the default, is clean into corrupted")
    for axis in ("layers", "positions", "heads"):
        write.add_argument(f"--{axis}", type=pieces, metavar="LIST", help="of --site only these, together: 0,3")
    add_tokens(write)
    add_model(write)
    write.add_argument(
        "-o", "--output", action="append", default=[], metavar="FILE", help=".json or .csv; may be repeated"
    )
    write.set_defaults(of=None, plot=False, answer=None, wrong=None)

    top = add("top", top_command, "print the most likely next tokens")
    top.add_argument("prompt")
    top.add_argument("-k", type=int, default=10, metavar="N", help="how many tokens (%(default)s)")
    add_model(top)
    add_tokens(top)

    tokens = add("tokens", tokens_command, "print the tokens of a prompt, or of two side by side, aligned")
    tokens.add_argument("prompt")
    tokens.add_argument("other", nargs="?", metavar="prompt", help="a second prompt, aligned with the first")
    add_model(tokens)

    convert = add(
        "convert", convert_command, "write a checkpoint of another program as Hugging Face's transformers reads it"
    )
    convert.add_argument("source", help="a file or folder of minGPT, nanoGPT, llm.c, TransformerLens, or any --model")
    convert.add_argument("folder", help="a new folder")
    convert.add_argument(
        "--n-head", type=int, metavar="N", help="the number of heads, where the checkpoint does not say it"
    )
    convert.add_argument(
        "--activation-function", choices=tuple(ACTIVATIONS), help="where the checkpoint does not say it"
    )
    convert.add_argument("--vocabulary", metavar="FILE", help="gpt2, or a meta.pkl, tokenizer.json or vocab.json")

    download = add("download", download_command, "download a checkpoint into the Hugging Face cache")
    download.add_argument("name", help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or org/name")

    check = add("verify", verify_command, "compare a model with stored reference values")
    state_help = "compare any model with a debug state of llm.c instead"
    check.add_argument("name", nargs="?", default="nano", help="nano (the default) or gpt2; any with --debug-state")
    check.add_argument("--plot", metavar="FILE", help="draw the published patching grid of gpt2 beside the model's")
    check.add_argument("--debug-state", metavar="FILE", help=state_help)
    for command in commands.choices.values():
        if command not in (demo, explore):
            command.add_argument("--json", action="store_true", help="print JSON, for programs")
    return whole


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="nano", help=MODEL_HELP)


def add_pair(command: argparse.ArgumentParser) -> None:
    """The options that name or spell out one experiment, and the model."""
    add = command.add_argument
    add("--experiment", choices=NAMED, help="a named experiment, instead of the four texts")
    add("--clean", metavar="TEXT", help="the prompt whose answer is --answer")
    add("--corrupted", metavar="TEXT", help="the prompt whose answer is --wrong")
    add("--answer", metavar="TOKEN", help='one token, usually with its leading space: " Jones"')
    add("--wrong", metavar="TOKEN", help='one token: " Smith"')
    add("--align", choices=("diff",), help="align prompts of different lengths by their tokens")
    add_tokens(command)
    add_model(command)
    command.set_defaults(corrupt=None, pairs=None, metric=None)


def add_question(command: argparse.ArgumentParser, endings: tuple[str, ...]) -> None:
    """The options of every patching command: prompts and answers, model, direction, metric, outputs."""
    add_pair(command)
    add = command.add_argument
    add("--pairs", metavar="FILE", help="pairs to average over, .jsonl or .csv, instead of the four texts")
    add("--workers", type=int, metavar="N", help="compute pairs in N processes")
    add("--folder", metavar="FOLDER", help="remember what is done there: the same command goes on where it stopped")
    add("--shard", type=shard, metavar="I/N", help="only share I of N, for jobs that meet in --folder: 3/100")
    add("--direction", choices=("denoise", "noise", "both"), help="denoise, the default, is clean into corrupted")
    add("--metric", type=names, help=f"{', '.join(METRICS)}; several with commas")
    outputs = f"{' '.join(endings)}; may be repeated"
    add("-o", "--output", action="append", default=[], metavar="FILE", help=outputs)
    add("--plot", action="store_true", help="show the picture in a window")
    command.set_defaults(endings=endings)


def add_runs(command: argparse.ArgumentParser, several: bool) -> None:
    """The options of commands that look at a run: of a prompt, or at both runs of an experiment. several: at once."""
    add = command.add_argument
    add("prompt", nargs="?", help="the (clean) prompt to run; or give --experiment")
    add("--corrupted", metavar="TEXT", help="a second prompt, to look at both runs")
    add("--experiment", choices=NAMED, help="a named experiment, instead of a prompt")
    add("--answer", metavar="TOKEN", help='one token, usually with its leading space: " Jones"')
    add("--wrong", metavar="TOKEN", help='one token: " Smith"')
    if several:
        of_help = f"which runs of two prompts: {', '.join(RUNS)}; several with commas (clean,corrupted)"
        add("--of", type=names, help=of_help)
    else:
        add("--of", choices=RUNS[:2], help="which run of two prompts (clean)")
    add_tokens(command)
    add_model(command)
    add("-o", "--output", action="append", default=[], metavar="FILE", help=f"{' '.join(ENDINGS)}; may be repeated")
    add("--plot", action="store_true", help="show the picture in a window")


def add_tokens(command: argparse.ArgumentParser) -> None:
    """How prompts and answers are read."""
    command.add_argument(
        "--bos", action="store_true", help="put <|endoftext|>, or the model's own such token, before each prompt"
    )
    command.add_argument("--special-tokens", action="store_true", help="read <|endoftext|> in a prompt as that token")
    command.add_argument("--ids", action="store_true", help="prompts and answers are token ids: 15,3,7")


def add_pieces(command: argparse.ArgumentParser) -> None:
    """The options that say which site is patched, in which pieces, and what replaces a second prompt."""
    add = command.add_argument
    sites = "resid_pre (the default), attn_out, z, ...; several with commas"
    add("--site", type=names, default=["resid_pre"], help=sites)
    add("--axes", type=names, help="the axes of the grid: layer,position or layer,head or ...")
    add("--window", type=int, default=1, help="how many neighbouring layers are patched together")
    only = "only these: 0,3 one by one, or 0+3 together"
    add("--layers", type=pieces, metavar="LIST", help=only)
    add("--heads", type=pieces, metavar="LIST", help=only)
    add("--positions", type=positions, metavar="LIST", help=f"{only}; --positions=-2,-1 from the end; names of marks")
    add("--neurons", type=int, metavar="N", help="the N neurons that differ most (sites mlp_pre, mlp_post)")
    add(
        "--corrupt",
        choices=("zero", "mean", "resample", "noise"),
        help="instead of a second prompt: zero, a mean, another prompt's activations; or noise on embeddings",
    )
    add("--prompts", metavar="FILE", help="a file with one prompt on each line, for --corrupt mean and resample")
    add("--noise-at", type=pieces, metavar="LIST", help="positions whose embeddings get noise, for --corrupt noise")


def token_ids(text: str) -> list[int]:
    """ "15,3,7", or with spaces, as [15, 3, 7]."""
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        usage_error(f"{text!r:.60} is not a list of token ids such as 15,3,7, which --ids expects")


def one_id(text: str) -> int:
    ids = token_ids(text)
    if len(ids) != 1:
        usage_error(f"{text!r:.60} is not one token id, which --ids expects of an answer")
    return ids[0]


def names(text: str) -> list[str]:
    """Names with commas between them, as a list."""
    given = [name.strip() for name in text.split(",")]
    if not all(given):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name or several names with commas between them")
    return given


def positions(text: str) -> list[set[Any]]:
    """As `pieces`, of numbers, also from the end, and names: "last subject+after subject,-1"."""
    return pieces(text, lambda part: part.strip() if any(map(str.isalpha, part)) else int(part))


def pieces(text: str, read: Callable[[str], Any] = int) -> list[set[Any]]:
    """ "0,3+4" as [{0}, {3, 4}]."""
    try:
        found = [[read(part) for part in piece.split("+")] for piece in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0,3 (one by one) or 0+3 (together)") from None
    if any(len(set(piece)) < len(piece) for piece in found):
        raise argparse.ArgumentTypeError(f"{text!r} names a number twice in one group")
    return [set(piece) for piece in found]


# ---- the commands --------------------------------------------------------------------------------


def demo_command(options: Namespace) -> None:
    """Every named experiment: the most likely next tokens, and the heatmap in the terminal and as a picture."""
    plot.check_matplotlib()
    folder = expand(options.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: half of a surrogate pair
        raise NanopatchError(f"cannot make the folder {folder}: {getattr(error, 'strerror', None) or error}") from None
    for name in NAMED:
        check_writable(folder / f"{name}.png")
    model = load(options.model)
    for experiment in NAMED.values():
        try:
            experiment.tokens(model)
        except NanopatchError as error:
            raise NanopatchError(
                f"this model cannot read the demo's prompts: give your own to the other commands ({error})"
            ) from None
    print(model)
    for name, experiment in NAMED.items():
        print(f"\n=== {name}: {experiment.clean!r} / {experiment.corrupted!r}\n")
        print_top(top_list(model, model.next_logits(experiment.clean), 10))
        result = sweep(model, experiment)
        result.save(folder / f"{name}.png")
        print(f"\n{result}\npicture: {folder / name}.png")


def patch_command(options: Namespace) -> None:
    """One sweep, or several side by side; of two prompts, of one that is ablated or noised, or of many pairs."""
    site = patches(options)
    give_out(sweep(**question(options), site=site), options)


def attribute_command(options: Namespace) -> None:
    """The same grid, estimated from derivatives (attribution patching). It can be compared with exact patching."""
    file = options.against_exact
    if file:
        check_outputs([file], PICTURES)
        if len(options.site) > 1 or len(options.metric or []) > 1 or options.direction == "both":
            usage_error("--against-exact takes one site, direction and metric")
        if file in options.output:
            usage_error(f"-o and --against-exact both name {file}")
    asked = {"site": patches(options), **question(options)}
    estimate = attribute(**asked, steps=options.steps)
    if file:
        comparison = Comparison(sweep(**asked), estimate)
        comparison.save(file)
        print(f"wrote {file}\n{comparison}", file=sys.stderr)
    give_out(estimate, options)


def heads_command(options: Namespace) -> None:
    """The five head grids, side by side; or the scores of all heads, beside what patching and ablating them does."""
    if options.scores:
        return scores_command(options)
    if options.scored is not None:
        usage_error("--prompts FILE goes with --scores")
    asked, sites = question(options), ["z", "q", "k", "v", "pattern"]
    experiment = asked["experiments"]
    if isinstance(experiment, Experiment) and any(i != j for i, j in experiment.columns(asked["model"])):
        sites.remove("pattern")  # it needs equal positions in both prompts
        print("nanopatch: the positions of the prompts differ: pattern is left out", file=sys.stderr)
    give_out(sweep(**asked, site=[Patch(site, axes=("layer", "head")) for site in sites]), options)


def inside(folder: Any, name: str) -> Any:
    """A folder in the one that --folder names."""
    if isinstance(folder, Share):
        return folder._replace(folder=Path(folder.folder, name))
    return None if folder is None else Path(folder, name)


def scores_command(options: Namespace) -> None:
    """What every head attends to, beside what ablating and patching it does in an experiment, if one is given."""
    check_outputs(options.output, options.endings)
    lines = None if options.scored is None else read_prompts(options.scored)
    prompts = [token_ids(line) for line in lines] if lines and options.ids else lines
    named = ("experiment", "clean", "corrupted", "answer", "wrong", "align", "pairs", "direction", "metric")
    effects: list[Any] = []
    if any(getattr(options, name) is not None for name in named):
        asked = question(options)
        model = asked["model"]
        zeroed = {"direction": None, "corruption": Zero()}
        for name, others in (("ablated", zeroed), ("patched", {})):  # each in a folder of its own
            result = sweep(**asked | others | {"folder": inside(asked["folder"], name)}, site="z")
            effects += result.sweeps().values() if isinstance(result, Panels) else [result]
        if None in effects:
            print(*(RunFolder.at(Path(options.folder, name)).progress for name in ("ablated", "patched")), sep="\n")
            return
    else:
        unused = [f"--{name}" for name in ("special-tokens", "ids") if getattr(options, name.replace("-", "_"))]
        if unused and prompts is None:
            usage_error(f"{', '.join(unused)} goes with --prompts FILE, or with the prompts of an experiment")
        model = load(options.model)
    read: dict[str, Any] = {"prepend_bos": options.bos, "special_tokens": options.special_tokens}
    give_out(head_scores(model, prompts, **read, beside=effects), options)


def page_command(options: Namespace) -> None:
    """The page of one experiment, as a file."""
    check_outputs([options.output], (".html",))
    experiment: Any = experiments_of(options)
    directions = ["denoise", "noise"] if options.direction == "both" else options.direction
    page = make_page(load(options.model), experiment, options.site, direction=directions, metric=options.metric)
    page.save(options.output)
    if options.json:
        print_json({"file": options.output, "bytes": len(page.html)})
    else:
        print(f"wrote {options.output} ({len(page.html):,} bytes): open it in a browser")


def lessons_command(options: Namespace) -> None:
    """The list of lessons; or one of them, as a file."""
    if options.number is None:
        if options.notebook or options.output:
            usage_error("which lesson? Give its number: nanopatch lessons 1")
        known = lessons()
        if options.json:
            print_json([{"number": n, "title": title, "minutes": minutes} for n, title, minutes, _ in known])
            return
        for n, title, minutes, _ in known:
            print(f"{n:3}  {minutes:2} min  {title}")
        print("\nnanopatch lessons 1 writes lesson 1 as a script, and with --notebook as a notebook.")
        return
    lesson = find_lesson(options.number)
    ending = ".ipynb" if options.notebook else ".py"
    target = options.output or lesson.path.with_suffix(ending).name
    check_outputs([target], (ending,))
    if expand(target).exists():  # it may hold somebody's answers
        raise NanopatchError(f"{target} is there already: give another name with -o, or remove it first")
    write_whole(target, (lesson.notebook() if options.notebook else lesson.text).encode("utf-8"))
    how = "open it in Jupyter or VS Code" if options.notebook else f"open it in an editor, or run python {target}"
    if options.json:
        print_json({"file": str(target), "number": lesson.number, "title": lesson.title, "minutes": lesson.minutes})
    else:
        print(f"wrote {target} (lesson {lesson.number}, {lesson.title}; {lesson.minutes} minutes): {how}")


def explore_command(options: Namespace) -> None:
    """The live page, until Ctrl-C."""
    from .explore import server  # loads http.server, which is larger than this library
    from .explore.answers import Answers, first_experiment
    from .page.document import live_files

    if options.port is not None and not 0 <= options.port <= 65535:
        usage_error(f"--port {options.port}: give a number from 1 to 65535, or 0 for any free one")
    named = ("experiment", "clean", "corrupted", "answer", "wrong", "align")
    given = any(getattr(options, name) is not None for name in named)
    experiment: Any = experiments_of(options) if given else None
    model = load(options.model)
    answers = Answers(model)
    files = live_files(answers.start("live", experiment or first_experiment(model)))
    running = server.Server(answers, files, server.PORT if options.port is None else options.port)
    if options.port and running.server_port != options.port:
        print(f"nanopatch: port {options.port} is taken; this is another one", file=sys.stderr)
    server.serve(running, open_browser=not options.no_browser)


def path_command(options: Namespace) -> None:
    """A matrix of senders and receivers."""
    asked = question(options)
    del asked["corruption"]
    give_out(
        path_patch(**asked, senders=options.senders, receivers=options.receivers, between=options.between), options
    )


def merge_command(options: Namespace) -> None:
    """The result of a folder, and what its pairs gave."""
    check_outputs(options.output, ENDINGS)
    if options.pairs_output:
        check_outputs([options.pairs_output], (".csv", ".npz", ".json"))
    result = merge(options.folder)
    pairs: Any = getattr(result, "pairs", None)
    if pairs is None and (options.pairs_output or options.furthest is not None):
        raise NanopatchError(
            "these are several results: take the pairs of one of them, in Python: merge(folder)[name].pairs"
        )
    if options.pairs_output:
        pairs.save(options.pairs_output)
        print(f"wrote {options.pairs_output}", file=sys.stderr)
    if options.furthest is None:
        give_out(result, options)
        return
    save_and_show(result, options)
    prompts = RunFolder.at(options.folder).prompts
    rows = [{**row, **prompts(row["pair"])} for row in pairs.furthest(*options.furthest)]
    if options.json:
        print_json(rows)
    for row in [] if options.json else rows:
        print(printable(f"{number(row['value']):>9} ({number(row['from_mean'])} from the mean)  {row['clean']}"))


def edges_command(options: Namespace) -> None:
    """Every edge's score, and the metric of the model when only the best edges carry the clean run."""
    if options.direction == "both" or len(options.metric or []) > 1:
        usage_error("edges are scored in one direction and by one metric")
    asked = question(options)
    model, experiments, metric, workers = (asked[name] for name in ("model", "experiments", "metric", "workers"))
    where = {"workers": workers, "folder": asked["folder"]}
    direction = asked["direction"] or "denoise"
    scores = edge_attribution(model, experiments, direction=direction, metric=metric, steps=options.steps, **where)
    if scores is None:
        give_out(scores, options)
        return
    best = circuit(scores, options.n, by=options.by)
    if not best:
        raise NanopatchError(f"the best {options.n} edges make no path from embed to logits: give more, with -n")
    kept = faithfulness(model, experiments, best, metric=metric, workers=workers)
    save_and_show(scores, options, n=options.n, by=options.by)
    if options.json:
        drawn = [{"sender": e.sender, "receiver": e.receiver, "score": e.score} for e in best]
        print_json(scores.to_dict() | {"edges": drawn, "circuit": kept.to_dict()})
    else:
        lines = [f"{number(edge.score, 4):>10}  {edge.sender} -> {edge.receiver}" for edge in best]
        head = f"{scores.title}; {len(best)} of the best {options.n} edges are on a path from embed to logits"
        print("\n".join([head, *lines, f"the model with these edges alone: {kept.title}", *scores.notes]))


def lens_command(options: Namespace) -> None:
    """What each layer would predict, of one run or of several beside each other."""
    needed = {"prediction": [], "logit_diff": ["answer", "wrong"]}.get(options.show, ["answer"])
    missing = [f"--{name}" for name in needed if getattr(options, name) is None]
    if missing and not options.experiment:
        usage_error(f"--show {options.show} needs {' and '.join(missing)}")
    model, pair, runs = runs_of(options, ["clean", "corrupted"], ("resid_pre", "resid_mid", "resid_post", "logits"))
    lenses = {n: logit_lens(model, run, pair.answer, pair.wrong_answer).show(options.show) for n, run in runs.items()}
    give_out(side_by_side(lenses, options), options)
    if "clean" in runs:
        print_notes(model, pair, runs["clean"].logits[-1])


def attention_command(options: Namespace) -> None:
    """Where heads look, in one run or in several beside each other."""
    if options.head is not None and options.layer is None:
        usage_error("--head is a head of one layer: give --layer too")
    given = [name for name in ("answer", "wrong") if getattr(options, name) is not None]
    if given:
        usage_error(f"attention is to tokens, whatever the answer: leave out --{', --'.join(given)}")
    model, pair, runs = runs_of(options, ["clean", "corrupted"], ("pattern", "v", "logits"))
    shown = {n: attention(model, run, options.layer, options.head, options.weighted) for n, run in runs.items()}
    give_out(side_by_side(shown, options), options)
    if "clean" in runs:
        print_notes(model, replace(pair, answer=None, wrong_answer=None), runs["clean"].logits[-1])


def generate_command(options: Namespace) -> None:
    """Continuations of a prompt; or of two prompts, and of one of them with an array from the other's run."""
    chosen = {axis: getattr(options, axis) for axis in ("layers", "positions", "heads")}
    if options.site is None and (options.direction or any(chosen.values())):
        usage_error("--direction, --layers, --positions and --heads say what of --site is patched: give --site")
    if options.site is not None and options.experiment is None and options.corrupted is None:
        usage_error("a patch needs a second prompt: give --corrupted TEXT, or --experiment NAME")
    check_outputs(options.output, (".json", ".csv"))
    model, _, runs = runs_of(options, list(RUNS[:2]), options.site or "resid_pre")
    stop = one_id(options.stop) if options.ids and options.stop is not None else options.stop
    drawing = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p, "stop": stop}
    drawn: dict[str, Any] = {"n_samples": options.samples, "seed": options.seed, **drawing}
    prompts = {name: run.tokens for name, run in runs.items() if run.tokens is not None}
    found = {name: generate(model, tokens, options.n, **drawn) for name, tokens in prompts.items()}
    if options.site is not None:
        base, donor = DIRECTIONS[options.direction or "denoise"]
        edits = edits_between(model, prompts[base], prompts[donor], runs[donor], options.site, chosen)
        seeds = range(options.seed, options.seed + (options.samples or 1))
        found["patched"] = [
            patched(generate_steps(model, prompts[base], options.n, seed=seed, sites=options.site, **drawing), edits)
            for seed in seeds
        ]
    samples = {name: ids if isinstance(ids, list) else [ids] for name, ids in found.items()}
    contents = {
        name: {"ids": [one.tolist() for one in ids], "tokens": [model.token_strings(one) for one in ids]}
        for name, ids in samples.items()
    }
    for path in options.output:
        is_json = Path(path).suffix.lower() == ".json"
        write_text(json.dumps(contents, ensure_ascii=False) if is_json else as_csv(token_rows(contents)), path)
        print(f"wrote {path}", file=sys.stderr)
    if options.json:
        print_json(contents)
        return
    for name, ids in samples.items():
        for one in ids:
            text = model.detokenize(one) if model.reads_text else " ".join(model.token_strings(one))
            print(printable(text if len(runs) == 1 else f"{name:>9}: {one_line(text)}"))


def token_rows(contents: dict[str, Any]) -> list[dict[str, Any]]:
    """One dict for each new token of each continuation."""
    return [
        {"run": name, "sample": sample, "number": number, "id": token, "token": text}
        for name, found in contents.items()
        for sample, (ids, texts) in enumerate(zip(found["ids"], found["tokens"], strict=True))
        for number, (token, text) in enumerate(zip(ids, texts, strict=True))
    ]


def edits_between(model: Model, base: Array, other: Array, donor: Run, site: str, chosen: dict[str, Any]) -> list[Edit]:
    """The assignments that put an array of one run into another: all that is chosen, together.

    base, other: the tokens of the prompt that is patched into, and of the donor's.
    """
    if len(base) != len(other):
        raise NanopatchError(
            f"equal positions are patched, and the prompts have {len(base)} and {len(other)} tokens: give prompts of "
            "one length"
        )
    lists = [None if given is None else sorted(set().union(*given)) for given in chosen.values()]
    layers, positions, heads = lists
    pieces = Patch(site, layers=layers, positions=positions, heads=heads).pieces(model, len(base))
    of = {axis: sorted({int(one) for piece in some for one in piece}) for axis, some in pieces.items()}
    rows = of["query" if site in ATTENTION_SITES else "position"]
    return [Edit(site, layer, donor[site][layer], rows, of.get("head"), of.get("key")) for layer in of["layer"]]


def patched(rounds: Iterable[Round], edits: list[Edit]) -> Array:
    """The tokens of a generation whose prompt is edited."""
    new: list[int] = []
    for round in rounds:
        for site in round:
            for edit in edits:
                if round.number == 0 and site.layer == edit.layer:
                    edit.assign(site.array, first_position=0)
        new.append(int(round.tokens[-1]))
    return np.array(new, np.int64)


def direct_command(options: Namespace) -> None:
    """What each part of the model writes towards an answer."""
    if options.pairs is not None:
        give_out(direct_of_pairs(options), options, options.kind)
        return
    if not options.experiment and options.answer is None:
        usage_error("give --answer, whose logit is taken apart, and --wrong for a difference of two")
    model, pair, runs = runs_of(options, ["clean"])
    (run,) = runs.values()
    result = direct_logit_attribution(model, run, pair.answer, pair.wrong_answer, options.position, options.split)
    give_out(result, options, options.kind)
    if "clean" in runs:
        print_notes(model, pair, run.logits[options.position])


def direct_of_pairs(options: Namespace) -> DirectAttribution:
    """The mean over a file of pairs. Pairs that cannot be used are left out, and it says so."""
    names = ("prompt", "experiment", "corrupted", "answer", "wrong", "bos", "special_tokens", "ids")
    given = [name if name == "prompt" else f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    if given:
        usage_error(f"--pairs brings its own texts: leave out {', '.join(given)}")
    if (options.split or "").startswith("head"):
        usage_error("--split of a head is by position, and positions of different prompts have no mean: split an mlp")
    check_outputs(options.output, ENDINGS)
    task = DirectTask(options.of or "clean", options.position, options.split)
    found: DirectAttribution = over(load(options.model), read_pairs(options.pairs), task)
    return found


class DirectTask(NamedTuple):
    """Direct attribution of each of many experiments: see `nanopatch.patching.average.Task`."""

    prompt: str
    position: int
    split: str | None
    names: tuple[list[str], ...] = ()
    lists: tuple[bool, ...] = ()

    def structure(self, model: Model, pair: Experiment) -> Columns:
        """Nothing that pairs must share: prompts may differ in length, if all have the position."""
        check_position(len(getattr(pair.tokens(model), self.prompt)), self.position)
        return []

    def one(self, model: Model, pair: Experiment, number: int) -> dict[Key, DirectAttribution]:
        run = model.run(getattr(pair.tokens(model), self.prompt))
        direct = direct_logit_attribution(model, run, pair.answer, pair.wrong_answer, self.position, self.split)
        return {(): direct}

    def to_dict(self) -> dict[str, Any]:
        return {"direct": self.prompt, "position": self.position, "split": self.split}


def top_command(options: Namespace) -> None:
    """The most likely next tokens of one prompt."""
    if options.k < 1:
        usage_error(f"-k {options.k}: give at least 1")
    model, pair = load(options.model), one_prompt(options)
    tokens = pair.tokens(model)
    logits = model.next_logits(tokens.clean)
    rows = top_list(model, logits, options.k)
    print_json(rows) if options.json else print_top(rows)
    print_notes(model, pair, logits)


def tokens_command(options: Namespace) -> None:
    """The tokens of one prompt, or two prompts' tokens aligned."""
    prompts = [prompt for prompt in (options.prompt, options.other) if prompt is not None]
    if not all(prompts):
        raise NanopatchError("the prompt is empty: give some text")
    model = load(options.model)
    encode = model.vocabulary.encode if model.vocabulary else model.tokenize  # which refuses a text: it says why
    ids = [list(encode(prompt)) for prompt in prompts]
    rows: list[Any] = [(position,) for position in range(len(ids[0]))]
    if len(ids) == 2:
        rows = align(ids[0], ids[1], "diff")

    def cell(side: int, position: int | None) -> dict[str, Any] | None:
        if position is None:
            return None
        token = ids[side][position]
        return {"position": position, "id": token, "token": model.token_strings(token)[0]}

    table = [[cell(side, position) for side, position in enumerate(row)] for row in rows]
    if options.json:
        print_json(table if len(ids) == 2 else [row[0] for row in table])
        return
    for row in table:
        texts = ["" if c is None else f"{c['position']:>3} {c['id']:>6}  {visible(c['token'])}" for c in row]
        same = len({c and c["id"] for c in row}) == 1
        line = f"{texts[0]:<34}{'' if same else '  ≠ '}{texts[1]}".rstrip() if len(row) == 2 else texts[0]
        print(printable(line))


def convert_command(options: Namespace) -> None:
    """Write any checkpoint that can be loaded as `config.json` and `model.safetensors`, and print the folder."""
    check_new_folder(options.folder)
    model = load(
        options.source,
        n_head=options.n_head,
        activation_function=options.activation_function,
        vocabulary=options.vocabulary,
    )
    folder = str(save_checkpoint(model, options.folder))
    print_json({"folder": folder}) if options.json else print(folder)


def download_command(options: Namespace) -> None:
    """Download a checkpoint if it is not here, and print its folder."""
    folder = str(hub.find(options.name))
    print_json({"name": options.name, "folder": folder}) if options.json else print(folder)


def verify_command(options: Namespace) -> int:
    """Compare a model with stored reference values; the status is 1 if a check fails."""
    if options.plot is not None and options.debug_state is not None:
        usage_error("--plot draws published values of gpt2, and --debug-state compares with others: give one of them")
    if options.plot is not None:
        check_outputs([options.plot], PICTURES)
        picture(options.name).save(options.plot)
        print(f"wrote {options.plot}", file=sys.stderr)
    if options.debug_state is not None:
        report = verify_debug_state(load(options.name), options.debug_state)
    else:
        report = verify(options.name)
    print_json(report.to_dict()) if options.json else print(report)
    return 0 if report.ok else 1


# ---- from the options to a question ---------------------------------------------------------------


def question(options: Namespace) -> dict[str, Any]:
    """The arguments that all questions share: model, experiments, direction, metric, corruption."""
    check_outputs(options.output, options.endings)
    if options.plot:
        plot.check_matplotlib()
    corruption = corruption_of(options)
    metrics = options.metric or ["probability" if isinstance(corruption, Noise) else "logit_diff"]
    experiments = experiments_of(options)
    folder = options.folder
    if options.shard is not None:
        if folder is None:
            usage_error("--shard needs --folder, where the shares meet")
        folder = Share(folder, *options.shard)
    if (options.folder or options.workers is not None) and options.pairs is None:
        usage_error("--folder, --workers and --shard are for many pairs: give --pairs FILE")
    return {
        "model": load(options.model),
        "experiments": experiments,
        "workers": options.workers,
        "folder": folder,
        "direction": ["denoise", "noise"] if options.direction == "both" else options.direction,
        "metric": metrics if len(metrics) > 1 else metrics[0],
        "corruption": corruption,
    }


def shard(text: str) -> tuple[int, int]:
    """ "3/100": the third of a hundred shares."""
    number, slash, of = text.partition("/")
    if not slash or not number.isdecimal() or not of.isdecimal() or not 1 <= int(number) <= int(of):
        raise argparse.ArgumentTypeError(f"{text!r} is no share such as 3/100: of 100, the first is 1/100")
    return int(number), int(of)


def cell(text: str) -> list[int]:
    """ "2,0": the index of a cell of a grid."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no cell such as 2,0") from None


def patches(options: Namespace) -> Patch | list[Patch]:
    """What is patched: one site, or several side by side."""
    names = ("axes", "layers", "positions", "heads", "neurons", "window")
    found = [Patch(site, **{name: getattr(options, name) for name in names}) for site in options.site]
    return found if len(found) > 1 else found[0]


def corruption_of(options: Namespace) -> Corruption | None:
    """What takes the place of a second prompt."""
    corrupt = options.corrupt
    for kinds, given, what in (
        (("mean", "resample"), getattr(options, "prompts", None), "--prompts FILE"),
        (("noise",), getattr(options, "noise_at", None), "--noise-at LIST"),
    ):
        if corrupt in kinds and not given:
            usage_error(f"--corrupt {corrupt} needs {what}")
        if given and corrupt not in kinds:
            usage_error(f"{what} goes with --corrupt {' or '.join(kinds)}")
    if corrupt == "noise":
        return Noise([position for piece in options.noise_at for position in piece])
    if corrupt in ("mean", "resample"):
        lines = read_prompts(options.prompts)
        prompts = [token_ids(line) for line in lines] if options.ids else lines
        return (Mean if corrupt == "mean" else Resample)(prompts)
    return Zero() if corrupt == "zero" else None


def experiments_of(options: Namespace) -> Experiments:
    """The pairs, or the one experiment, that the options name or spell out."""
    texts = {n: getattr(options, n.removeprefix("--")) for n in ("--clean", "--corrupted", "--answer", "--wrong")}
    brings = "--pairs" if options.pairs is not None else "--experiment" if options.experiment else None
    if options.corrupt and texts["--corrupted"] is not None:
        usage_error(f"--corrupt {options.corrupt} takes the place of --corrupted")
    if brings:
        given = [name for name, text in texts.items() if text is not None] + ["--bos"] * options.bos
        given += ["--special-tokens"] * options.special_tokens + ["--ids"] * options.ids
        given += ["--experiment"] * (brings == "--pairs" and bool(options.experiment))
        if given:
            usage_error(f"{brings} brings its own texts: leave out {', '.join(given)}")
    if options.corrupt:
        texts["--corrupted"] = texts["--clean"]  # not used
    if brings == "--pairs":
        file = read_pairs(options.pairs)
        if not options.align:
            return file
        return replace(file, pairs=[replace(pair, align=options.align) for pair in file.pairs])
    if brings:
        experiment = NAMED[options.experiment]
        return replace(experiment, align=options.align) if options.align else experiment
    metrics = [METRICS[name] for name in options.metric or ["logit_diff"] if name in METRICS]
    optional = set() if any(metric.needs == "answers" for metric in metrics) or not metrics else {"--wrong"}
    if optional and not any(metric.reads_answers for metric in metrics):
        optional.add("--answer")
    missing = [name for name, text in texts.items() if text is None and name not in optional]
    if missing:
        others = "--experiment NAME" + (", or --pairs FILE" if "endings" in options else "")  # `page` takes no pairs
        usage_error(f"give {', '.join(missing)}, or {others}")
    clean, corrupted, answer, wrong_answer = texts.values()
    pair = Experiment(clean, corrupted, answer, wrong_answer, options.bos, options.align, options.special_tokens)
    if not options.ids:
        return pair
    pair = replace(pair, clean=token_ids(clean), corrupted=token_ids(corrupted))
    answers = [None if text is None else one_id(text) for text in (answer, wrong_answer)]
    return replace(pair, answer=answers[0], wrong_answer=answers[1])


def one_prompt(options: Namespace) -> Experiment:
    """The prompt of a command that takes one, and what goes with it, as an experiment; alone it is both prompts."""
    texts: list[Any] = [options.prompt, getattr(options, "corrupted", None) or options.prompt]
    clean, corrupted = map(token_ids, texts) if options.ids else texts
    given: list[Any] = [getattr(options, name, None) for name in ("answer", "wrong")]
    answer, wrong = (one_id(text) if options.ids and text is not None else text for text in given)
    return Experiment(clean, corrupted, answer, wrong, prepend_bos=options.bos, special_tokens=options.special_tokens)


def runs_of(options: Namespace, default: list[str], sites: Sites = None) -> tuple[Model, Experiment, dict[str, Run]]:
    """The model, the experiment, and the runs to look at by name: that of a prompt alone is "clean".

    default: the runs of two prompts where --of names none. For a difference, both are made.
    """
    if (options.prompt is None) == (options.experiment is None):
        usage_error("give one prompt, or --experiment NAME")
    given = [name for name in ("corrupted", "answer", "wrong") if getattr(options, name) is not None]
    given += [name for name in ("bos", "special_tokens", "ids") if getattr(options, name)]
    if options.experiment and given:
        left_out = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        usage_error(f"--experiment brings its own texts: leave out {left_out}")
    if options.wrong is not None and options.answer is None:
        usage_error("--wrong is compared with --answer: give --answer too")
    wanted = [options.of] if isinstance(options.of, str) else options.of or default
    alone = options.experiment is None and options.corrupted is None
    if options.of and alone:
        usage_error("--of names the runs of two prompts: give --experiment, or --corrupted")
    if not set(wanted) <= set(RUNS) or len(set(wanted)) < len(wanted):
        usage_error(f"--of takes {', '.join(RUNS)}, each once, not {','.join(wanted)}")
    check_outputs(options.output, ENDINGS)
    if options.plot:
        plot.check_matplotlib()
    pair = NAMED[options.experiment] if options.experiment else one_prompt(options)
    model = load(options.model)
    tokens = pair.tokens(model)
    needed = RUNS[:1] if alone else RUNS[:2] if "difference" in wanted else wanted
    runs = {name: model.run(getattr(tokens, name), sites=sites) for name in needed}
    return model, pair, runs


def read_prompts(path: str) -> list[str]:
    """The prompts of a file, one on each line; empty lines are left out."""
    try:
        lines = re.split(r"\r\n?|\n", read_text(path))  # splitlines would cut at U+2028 and others too
    except FileNotFoundError as error:
        raise NanopatchError(f"cannot read {path}: {error.strerror}") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise NanopatchError(f"{path} holds no prompts: give one prompt on each line")
    return prompts


def check_outputs(paths: list[str], endings: tuple[str, ...]) -> None:
    """Check that the output files can be written, before the work rather than after it."""
    for path in map(Path, paths):
        if path.suffix.lower() not in endings:
            usage_error(f"{path}: the file name must end in one of {', '.join(endings)}")
        check_writable(path)
        if path.suffix.lower() in PICTURES:
            plot.check_matplotlib()


# ---- what comes out ------------------------------------------------------------------------------


def side_by_side(views: dict[str, Any], options: Namespace) -> Any:
    """The view of one run; or those that --of names, as panels, with their difference."""
    wanted = options.of or [*views]
    if "difference" in wanted:
        views = views | {"difference": views["clean"] - views["corrupted"]}
    return views[wanted[0]] if len(wanted) == 1 else Panels({name: views[name] for name in wanted})


def save_and_show(result: Any, options: Namespace, *kind: Any, **chosen: Any) -> None:
    """Write a result to the requested files, and show it if requested. kind, chosen: what `save` and `plot` take."""
    for path in options.output:
        result.save(path, *kind, **chosen)
        print(f"wrote {path}", file=sys.stderr)
    if options.plot:
        plot.show(result.plot(*kind, **chosen))


def give_out(result: Any, options: Namespace, *kind: str) -> None:
    """Write a result to the requested files, show it if requested, and print it. kind: of a picture that has kinds."""
    if result is None:  # a share is done, and others are missing
        print(RunFolder.at(options.folder).progress)
        return
    save_and_show(result, options, *kind)
    print_json(result.to_dict()) if options.json else print(result)


def top_list(model: Model, logits: Array, k: int) -> list[dict[str, Any]]:
    found = top_tokens(logits, k)
    return [{"id": token, "token": model.token_strings(token)[0], "probability": p} for token, p in found]


def print_top(rows: list[dict[str, Any]]) -> None:
    for rank, row in enumerate(rows, start=1):
        print(printable(f"{rank:>3}  {row['probability']:6.1%}  {visible(row['token'])}"))


def print_notes(model: Model, pair: Experiment, logits: Array) -> None:
    """To stderr: what a reader of the clean run must know. logits: (n_vocab,), where its answer is read."""
    notes = predict(model, pair, pair.tokens(model), logits)
    for note in notes.notes(model.source.name if model.source else "the model"):
        print(note, file=sys.stderr)


def print_json(value: Any) -> None:
    """JSON to stdout; on a stream that is not UTF-8, other characters are escaped."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(jsonable(value), ensure_ascii=ascii_only, allow_nan=False))


def usage_error(text: str) -> NoReturn:
    print(f"nanopatch: {one_line(text)} (nanopatch --help, or nanopatch COMMAND --help, says more)", file=sys.stderr)
    raise SystemExit(2)
