"""The command line: `nanopatch demo`, `patch`, `attribute`, `heads`, `path`, `edges`, `top`, `tokens`, ...

Results go to stdout, progress and errors to stderr. Exit status 0; 1 for an error the user can mend,
told in one line; 2 for a wrong command line.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
from pathlib import Path

from .errors import NanopatchError
from .experiments.align import align
from .experiments.experiment import NAMED, Experiment
from .experiments.metrics import METRICS
from .patching.ablation import ABLATIONS
from .results.plot import FORMATS

PICTURES = tuple(f".{file_format}" for file_format in FORMATS)
OUTPUTS = (*PICTURES, ".csv", ".npz")
EDGE_OUTPUTS = (*PICTURES, ".json", ".dot")
MODEL_HELP = "nano (the default), gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, org/name, or a folder"
JSON_HELP = "print JSON, for programs"
CORRUPT_HELP = "instead of a second prompt: put zero, a mean or another prompt's activations in place; or add noise"
BOS_HELP = "put <|endoftext|> before the prompt"


def main(arguments=None):
    """Run one command line (by default the program's own); returns its exit status."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without ␣ or █ gets ? in their place
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    options = parser().parse_args(arguments)
    try:
        status = options.command(options)
        sys.stdout.flush()
        return status or 0
    except NanopatchError as error:
        print(f"nanopatch: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (`| head`) went away: not an error, but nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("nanopatch: interrupted", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors take one line, and whose options are spelled out, so that none is taken for another."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        usage_error(message)


def parser():
    """The command line's grammar."""
    whole = Parser(prog="nanopatch", description="Activation patching in GPT-2, in plain NumPy.")
    commands = whole.add_subparsers(required=True, metavar="command")

    def add(name, command, text):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        return sub

    demo = add("demo", demo_command, "run the named experiments and write their heatmaps")
    demo.add_argument("--model", default="nano", help=MODEL_HELP)
    demo.add_argument(
        "-o", "--output", default="nanopatch-demo", metavar="FOLDER", help="where pictures go (%(default)s)"
    )

    patch = add("patch", patch_command, "patch one site piece by piece")
    add_prompts(patch)
    add_choices(patch)

    attribute = add(
        "attribute", attribute_command, "estimate the grid of patch from derivatives (attribution patching)"
    )
    add_prompts(attribute)
    add_choices(attribute)
    attribute.add_argument("--steps", type=int, default=1, metavar="N", help="more than 1: integrated gradients")
    attribute.add_argument("--against-exact", metavar="FILE", help="also patch, and draw the estimate against it")

    heads = add("heads", heads_command, "patch every head's z, q, k, v and pattern, at all positions at once")
    add_prompts(heads)

    path = add("path", path_command, "patch the paths from senders to receivers")
    add_prompts(path)
    path.add_argument(
        "--senders", type=names, default=["embed", "head", "mlp"], help="embed, head, head 2, head 2.1, attn 1, mlp ..."
    )
    path.add_argument("--receivers", type=names, default=["logits"], help="logits, q 3, k 3.1, v, mlp 2, resid 3 ...")
    path.add_argument(
        "--between", choices=("frozen", "free mlps", "free"), default="frozen", help="what lies between them"
    )
    path.add_argument(
        "--form", choices=("exact", "linear", "both"), default="exact", help="linear: with LayerNorm frozen"
    )

    edges = add("edges", edges_command, "score the edges between heads and MLPs, and run the circuit of the best")
    add_prompts(edges, EDGE_OUTPUTS)
    edges.add_argument("-n", type=int, default=30, metavar="N", help="edges that make the circuit (%(default)s)")
    edges.add_argument("--steps", type=int, default=1, metavar="N", help="more than 1: integrated gradients (EAP-IG)")

    top = add("top", top_command, "print the most likely next tokens")
    top.add_argument("prompt")
    top.add_argument("-k", type=int, default=10, metavar="N", help="how many (%(default)s)")
    top.add_argument("--model", default="nano", help=MODEL_HELP)
    top.add_argument("--bos", action="store_true", help=BOS_HELP)
    top.add_argument("--json", action="store_true", help=JSON_HELP)

    tokens = add("tokens", tokens_command, "print the tokens of a prompt, or of two side by side, aligned")
    tokens.add_argument("prompt")
    tokens.add_argument("other", nargs="?", metavar="prompt", help="a second prompt, aligned with the first")
    tokens.add_argument("--json", action="store_true", help=JSON_HELP)

    download = add("download", download_command, "download a checkpoint into the Hugging Face cache")
    download.add_argument("name", help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or org/name")
    download.add_argument("--json", action="store_true", help=JSON_HELP)

    verify = add("verify", verify_command, "compare a model with stored reference values")
    verify.add_argument("name", nargs="?", default="nano", help="nano (the default) or gpt2")
    verify.add_argument("--json", action="store_true", help=JSON_HELP)
    return whole


def demo_command(options):
    """Every named experiment: the most likely next tokens, the heatmap in the terminal, and as a picture."""
    from .model.checkpoint import load
    from .patching.sweep import sweep
    from .results.plot import picture, save_picture

    model = load(options.model)
    folder = Path(options.output)
    make_folder(folder)
    print(model)
    for name, experiment in NAMED.items():
        print(f"\n=== {name}: {experiment.clean!r} / {experiment.corrupted!r}\n")
        print_top(model, experiment.clean, 10)
        result = sweep(model, experiment, align=alignment(model, experiment))
        path = folder / f"{name}.png"
        save_picture(picture(result), path)
        print(f"\n{result}\npicture: {path}")


def add_prompts(command, outputs=OUTPUTS):
    """The options that every patching command has: prompts and answers, model, direction, metric, outputs."""
    command.add_argument("--experiment", choices=NAMED, help="a named experiment, instead of the four texts")
    command.add_argument("--clean", metavar="TEXT", help="the prompt that calls for the answer")
    command.add_argument("--corrupted", metavar="TEXT", help="the prompt that calls for the wrong answer")
    command.add_argument("--answer", metavar="TOKEN", help='one token, usually with its leading space: " Jones"')
    command.add_argument("--wrong", metavar="TOKEN", help='one token: " Smith"')
    command.add_argument("--model", default="nano", help=MODEL_HELP)
    command.add_argument(
        "--direction",
        choices=("denoise", "noise", "both"),
        default="denoise",
        help="denoise: clean into corrupted, the default",
    )
    command.add_argument(
        "--metric", type=names, help=", ".join(METRICS) + "; several with commas; logit_diff by default"
    )
    command.add_argument("--align", choices=("diff",), help="align prompts of different lengths by their tokens")
    command.add_argument("--bos", action="store_true", help=BOS_HELP)
    command.add_argument(
        "-o", "--output", action="append", default=[], metavar="FILE", help=" ".join(outputs) + "; may be repeated"
    )
    command.add_argument("--plot", action="store_true", help="show the picture in a window")
    command.add_argument("--json", action="store_true", help=JSON_HELP)


def add_choices(command):
    """The options that say which site is patched, in which pieces, and with what instead of a second prompt."""
    command.add_argument(
        "--site",
        type=names,
        default=["resid_pre"],
        help="resid_pre (the default), attn_out, z, ...; several with commas",
    )
    command.add_argument("--axes", type=names, help="what makes the grid: layer,position or layer,head or ...")
    command.add_argument("--window", type=int, default=1, help="how many neighbouring layers are patched together")
    for axis in ("layers", "positions", "heads"):
        command.add_argument(f"--{axis}", type=pieces, metavar="LIST", help="only these: 0,3 or, patched together, 0+3")
    command.add_argument(
        "--neurons", type=int, metavar="N", help="the N neurons that differ most (sites mlp_pre, mlp_post)"
    )
    command.add_argument("--corrupt", choices=(*ABLATIONS, "noise"), help=CORRUPT_HELP)
    command.add_argument("--prompts", metavar="FILE", help="a prompt a line, for --corrupt mean and resample")
    command.add_argument(
        "--noise-at", type=pieces, metavar="LIST", help="positions whose embeddings get noise, for --corrupt noise"
    )
    command.add_argument(
        "--pairs", metavar="FILE", help="pairs to average over, .jsonl or .csv, instead of the four texts"
    )


def patch_command(options):
    """One sweep, or several side by side; of two prompts, of one that is ablated or noised, or of many pairs."""
    give_out(patched(options, reading(options)), options)


def attribute_command(options):
    """The same, estimated from derivatives (attribution patching); compared with exact patching on request."""
    from .gradients.attribution import Comparison
    from .results.plot import save_picture

    if options.against_exact:
        check_outputs([options.against_exact], PICTURES)
        if len(options.site) > 1 or len(options.metric or []) > 1 or options.direction == "both":
            usage_error("--against-exact takes one site, direction and metric")
        if options.against_exact in options.output:
            usage_error(f"-o and --against-exact both name {options.against_exact}")
    read = reading(options)
    estimate = patched(options, read, options.steps)
    if options.against_exact:
        comparison = Comparison(patched(options, read), estimate)
        save_picture(comparison.plot().figure, options.against_exact)
        print(f"wrote {options.against_exact}\n{comparison}", file=sys.stderr)
    give_out(estimate, options)


def reading(options):
    """Check the options of patch and attribute against each other, and read what they name: (model, what to patch)."""
    from .experiments.pairs import read_pairs
    from .model.checkpoint import load

    check_outputs(options.output)
    if options.corrupt and options.pairs is not None:
        usage_error("--corrupt and --pairs do not go together")
    for needs, given, what in (
        (options.corrupt in ("mean", "resample"), options.prompts, "--prompts FILE"),
        (options.corrupt == "noise", options.noise_at, "--noise-at LIST"),
    ):
        if needs and not given:
            usage_error(f"--corrupt {options.corrupt} needs {what}")
        if given and not needs:
            usage_error(f"{what} goes with --corrupt {'noise' if 'noise' in what else 'mean or resample'}")
    if options.pairs is not None:
        refuse_texts(options, "--pairs")
        experiment = read_pairs(options.pairs)
    elif options.corrupt:
        experiment = clean_experiment(options)
        if options.direction != "denoise" or options.align:
            usage_error(f"--corrupt {options.corrupt} has neither --direction nor --align")
        chosen = (options.layers, options.positions, options.heads, options.neurons)
        if options.corrupt == "noise" and any(choice is not None for choice in chosen):
            usage_error("--corrupt noise patches every piece: leave out --layers, --positions, --heads, --neurons")
    else:
        experiment = experiment_of(options)
    return load(options.model), experiment


def patched(options, read, steps=None):
    """The result that the options ask for; with steps, estimated. read: what `reading` returns."""
    from .experiments.pairs import sweep_pairs
    from .gradients.attribution import attribute
    from .patching.ablation import ablate, trace
    from .patching.sweep import sweep

    model, experiment = read
    choices, of_sweep = choices_of(options), sweep_options(options)
    if options.pairs is not None:
        return sweep_pairs(model, experiment, **of_sweep, **choices, attribution_steps=steps)
    if not options.corrupt and steps is None:
        return sweep(model, experiment, **of_sweep, **choices)
    if not options.corrupt:
        return attribute(model, experiment, **of_sweep, **choices, steps=steps)
    site = one("--site", options.site)
    if options.corrupt == "noise":
        noised = [position for piece in options.noise_at for position in piece]
        metric = metric_of(options) if options.metric else "probability"
        window = dict(window=options.window, attribution_steps=steps)
        return trace(model, experiment, noised, site, options.axes, metric, **window)
    choices |= dict(prompts=read_prompts(options.prompts) if options.prompts else None, attribution_steps=steps)
    return ablate(model, experiment, site, options.axes, options.corrupt, metric_of(options), **choices)


def heads_command(options):
    """The five head grids, side by side."""
    from .model.checkpoint import load
    from .patching.sweep import sweep

    check_outputs(options.output)
    experiment = experiment_of(options)
    options.site, options.axes = ["z", "q", "k", "v", "pattern"], ("layer", "head")
    model = load(options.model)
    if alignment(model, experiment):  # positions of a pattern have no partners then
        options.site.remove("pattern")
        print("nanopatch: the prompts have different lengths: pattern is left out", file=sys.stderr)
    give_out(sweep(model, experiment, **sweep_options(options)), options)


def path_command(options):
    """A matrix of senders and receivers."""
    from .model.checkpoint import load
    from .patching.paths import path_patch

    check_outputs(options.output)
    if options.align:
        usage_error("path patching needs prompts of one length: leave out --align")
    experiment = experiment_of(options)
    result = path_patch(
        load(options.model),
        experiment,
        options.senders,
        options.receivers,
        ["denoise", "noise"] if options.direction == "both" else options.direction,
        metric_of(options),
        options.between,
        options.form,
    )
    give_out(result, options)


def edges_command(options):
    """Every edge's score, and the metric of the model when only the best edges carry the clean run."""
    from .gradients.circuits import circuit, edge_attribution, faithfulness
    from .model.checkpoint import load
    from .results.plot import save_picture, show

    check_outputs(options.output, EDGE_OUTPUTS)
    if options.align or options.direction == "both":
        usage_error("edges are scored in one direction, of prompts of one length: leave out --align, --direction both")
    experiment, metric = experiment_of(options), one("--metric", options.metric or ["logit_diff"])
    model = load(options.model)
    scores = edge_attribution(model, experiment, options.direction, metric, options.steps)
    best = circuit(scores, options.n)
    if not best:
        raise NanopatchError(
            f"none of the best {options.n} edges lies on a way from embed to logits: give more, with -n"
        )
    kept = faithfulness(model, experiment, best, metric)
    for path in map(Path, options.output):
        if path.suffix.lower() == ".json":
            scores.save_json(path)  # every edge: the scores are the result, the circuit is made of them
        elif path.suffix.lower() == ".dot":
            scores.save_dot(path, options.n)
        else:
            save_picture(scores.plot(options.n).figure, path)
        print(f"wrote {path}", file=sys.stderr)
    if options.plot:
        show(scores.plot(options.n).figure)
    if options.json:
        print_json(scores.to_dict(options.n) | {"circuit": dataclasses.asdict(kept) | {"normalised": kept.normalised}})
    else:
        lines = [f"{edge.score:10.4f}  {edge.sender} -> {edge.receiver}" for edge in best]
        head = f"{scores.title}; of the best {options.n} edges, the {len(best)} on a way from embed to logits"
        print("\n".join([head, *lines, f"with these alone, {kept}"]))


def top_command(options):
    """The most likely next tokens of one prompt."""
    from .model.checkpoint import load

    if options.k < 1:
        usage_error(f"-k {options.k}: at least 1")
    model = load(options.model)
    if options.json:
        print_json(top_list(model, options.prompt, options.k, options.bos))
    else:
        print_top(model, options.prompt, options.k, options.bos)


def tokens_command(options):
    """The tokens of one prompt, or two prompts' tokens aligned."""
    from .model import tokenizer
    from .results.sweep import visible

    prompts = [prompt for prompt in (options.prompt, options.other) if prompt is not None]
    if not all(prompts):
        raise NanopatchError("the prompt is empty: give some text")
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    rows = align(*ids, how="diff") if len(ids) == 2 else [(position,) for position in range(len(ids[0]))]

    def cell(side, position):
        if position is None:
            return None
        token = ids[side][position]
        return {"position": position, "id": token, "token": tokenizer.decode([token])}

    table = [[cell(side, position) for side, position in enumerate(row)] for row in rows]
    if options.json:
        print_json(table if len(ids) == 2 else [row[0] for row in table])
        return
    for row in table:
        texts = ["" if c is None else f"{c['position']:>3} {c['id']:>6}  {visible(c['token'])}" for c in row]
        same = len(row) == 1 or (None not in row and row[0]["id"] == row[1]["id"])
        print(f"{texts[0]:<34}{'' if same else '  ≠ '}{texts[1]}".rstrip() if len(row) == 2 else texts[0])


def download_command(options):
    """Fetch a checkpoint, or find that it is there."""
    from .model import hub

    folder = hub.find(options.name)
    print_json({"name": options.name, "folder": str(folder)}) if options.json else print(folder)


def verify_command(options):
    """Compare with stored reference values; status 1 if anything is off."""
    from .verify import verify

    report = verify(options.name)
    print_json(report.to_json()) if options.json else print(report)
    return 0 if report.ok else 1


# ---- what the commands share ---------------------------------------------------------------------


def names(text):
    """Names with commas between them, as a list."""
    given = [name.strip() for name in text.split(",")]
    if not all(given):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name, or several with commas between them")
    return given


def pieces(text):
    """ "0,3+4" as [[0], [3, 4]]."""
    try:
        return [[int(number) for number in piece.split("+")] for piece in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0,3 or, to patch together, 0+3") from None


def one(option, values):
    if len(values) > 1:
        usage_error(f"{option} takes one name here, not {', '.join(values)}")
    return values[0]


def choices_of(options):
    """Which layers, positions, heads and neurons, and how wide a window, as `patching.sweep` takes them."""
    return {name: getattr(options, name) for name in ("layers", "positions", "heads", "neurons", "window")}


def sweep_options(options):
    """What `patching.sweep` is called with: a name alone where there is one, a list where there are several."""
    return dict(
        site=options.site if len(options.site) > 1 else options.site[0],
        axes=options.axes,
        direction=["denoise", "noise"] if options.direction == "both" else options.direction,
        metric=metric_of(options),
        align=options.align,
    )


def metric_of(options):
    """The metric, or the list of several."""
    metrics = options.metric or ["logit_diff"]
    return metrics if len(metrics) > 1 else metrics[0]


def texts_of(options):
    return {
        "--clean": options.clean,
        "--corrupted": options.corrupted,
        "--answer": options.answer,
        "--wrong": options.wrong,
    }


def refuse_texts(options, instead):
    given = [name for name, text in texts_of(options).items() if text is not None]
    given += ["--bos"] * options.bos + ["--experiment"] * (instead != "--experiment" and bool(options.experiment))
    if given:
        usage_error(f"{instead} brings its own texts: leave out {', '.join(given)}")


def experiment_of(options):
    """The experiment that the options name or spell out."""
    if options.experiment:
        refuse_texts(options, "--experiment")
        return NAMED[options.experiment]
    missing = [name for name, text in texts_of(options).items() if text is None]
    if missing:
        usage_error(f"needs {', '.join(missing)}, or --experiment NAME")
    return Experiment(*texts_of(options).values(), prepend_bos=options.bos)


def clean_experiment(options):
    """The same where there is no corrupted prompt to give: the clean one stands in its place."""
    if options.corrupted is not None:
        usage_error(f"--corrupt {options.corrupt} takes the place of --corrupted")
    if not options.experiment:
        options.corrupted = options.clean
    return experiment_of(options)


def read_prompts(path):
    """A prompt a line; empty lines are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise NanopatchError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise NanopatchError(f"{path} holds no prompts: a prompt a line is expected")
    return prompts


def check_outputs(paths, outputs=OUTPUTS):
    """Whether the output files can be written, before the work rather than after it."""
    for path in map(Path, paths):
        if path.suffix.lower() not in outputs:
            usage_error(f"{path}: a file's ending says what to write; known are {', '.join(outputs)}")
        if not path.parent.is_dir():
            raise NanopatchError(f"cannot write {path}: there is no folder {path.parent}")


def give_out(result, options):
    """Write a sweep, or panels of them, to the files asked for; show it; print it."""
    from .results.plot import picture, save_picture, show
    from .results.sweep import Panels

    for path in map(Path, options.output):
        written = [path]
        if path.suffix.lower() == ".csv":
            result.to_csv(path)
        elif path.suffix.lower() == ".npz":
            written = result.save(path) or [path]
        else:
            save_picture(picture(result), path)
        for file in written:
            print(f"wrote {file}", file=sys.stderr)
    if options.plot:
        show(picture(result))
    if options.json:
        sweeps = result.sweeps() if isinstance(result, Panels) else {"": result}
        contents = {name: s.header() | as_lists(s) for name, s in sweeps.items()}
        print_json(contents if isinstance(result, Panels) else contents[""])
    else:
        print(result)


def as_lists(sweep):
    """What a sweep's header does not hold, for JSON."""
    arrays = {name: getattr(sweep, name) for name in ("grid", "normalised", "unchanged", "standard_error")}
    return {name: None if array is None else array.tolist() for name, array in arrays.items()} | {"notes": sweep.notes}


def alignment(model, experiment):
    """ "diff" where an experiment's prompts have different lengths in the model's tokens, else None."""
    tokens = experiment.tokens(model)
    return None if len(tokens.clean) == len(tokens.corrupted) else "diff"


def top_list(model, prompt, k, bos=False):
    from .experiments.metrics import top_tokens

    logits = model.next_logits(prompt, prepend_bos=bos)
    return [
        {"id": token, "token": model.token_strings([token])[0], "probability": probability}
        for token, probability in top_tokens(logits, k)
    ]


def print_top(model, prompt, k, bos=False):
    from .results.sweep import visible

    for rank, row in enumerate(top_list(model, prompt, k, bos), start=1):
        print(f"{rank:>3}  {row['probability']:6.1%}  {visible(row['token'])}")


def print_json(value):
    """JSON has no NaN: what is not a number becomes null."""

    def finite(value):
        if isinstance(value, dict):
            return {name: finite(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(finite(value), ensure_ascii=False, allow_nan=False))


def make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NanopatchError(f"cannot make the folder {folder}: {error.strerror or error}") from None


def usage_error(text):
    print(f"nanopatch: {text} (nanopatch --help, or nanopatch COMMAND --help, says more)", file=sys.stderr)
    raise SystemExit(2)
