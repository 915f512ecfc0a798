"""`nanopatch convert`: every kind of checkpoint as a folder that transformers loads, and the same bits back."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import REFERENCE, tiny_config, tiny_model
from writers import in_layout, llmc, ordered, safetensors, tensor, torch_zip

from nanopatch import Model, NanopatchError, load
from nanopatch.cli import main
from nanopatch.model import convert
from nanopatch.model.backward import named_weights
from nanopatch.model.checkpoint import tensor_shapes
from nanopatch.model.convert import save_checkpoint
from nanopatch.model.vocabulary import GPT2, Characters

HEADS = ["--n-head", "2"]
TANH, EXACT = ["--activation-function", "gelu_new"], ["--activation-function", "gelu"]


def weights_of(seed=0, biases=True, tied=True, **changes):
    """Random weights of a tiny model in the published names and layout."""
    config, rng = tiny_config(n_inner=48, **changes), np.random.default_rng(seed)
    weights = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in tensor_shapes(config).items()}
    if tied:
        del weights["lm_head.weight"]
    return {name: array for name, array in weights.items() if biases or not name.endswith("bias")}


def as_torch(path, weights, layout, prefix="", nested=None, **beside):
    state_dict = {prefix + name: tensor(array) for name, array in in_layout(weights, layout, 2).items()}
    path.write_bytes(torch_zip({nested: ordered(state_dict), **beside} if nested else ordered(state_dict)))


def as_safetensors(folder, weights, config):
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors({name: (a, "F32") for name, a in weights.items()}))


def hugging_face(folder):
    config = {"model_type": "gpt2", "n_head": 2, "activation_function": "gelu_pytorch_tanh", "n_inner": None}
    as_safetensors(folder, weights_of(), config)
    return folder, []


def hugging_face_with_switches(folder):
    switches = {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "activation_function": "relu"}
    config = {"model_type": "gpt2", "n_head": 2, "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False, **switches}
    as_safetensors(folder, weights_of(tied=False), config)
    return folder, []


def mingpt(folder):
    return REFERENCE / "sorter_mingpt", []


def old_mingpt(folder):
    as_torch(folder / "model.pt", weights_of(tied=False), "old minGPT")
    return folder / "model.pt", [*HEADS, *EXACT]


def nanogpt(folder):
    return REFERENCE / "names_nanogpt", EXACT


def nanogpt_nested(folder):
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 12, "block_size": 12, "vocab_size": 29, "bias": True, "dropout": 0.0}
    weights = weights_of()
    weights["lm_head.weight"] = weights["wte.weight"]
    as_torch(folder / "ckpt.pt", weights, "linear", "_orig_mod.module.transformer.", "model", model_args=sizes)
    return folder / "ckpt.pt", EXACT


def llm_c(folder):
    (folder / "gpt2.bin").write_bytes(llmc(weights_of(), 2, n_padding=99))
    return folder / "gpt2.bin", []


def transformer_lens(folder):
    as_torch(folder / "model.pth", weights_of(tied=False), "TransformerLens")
    return folder / "model.pth", TANH


def nano(folder):
    return "nano", []


SOURCES = [
    *(hugging_face, hugging_face_with_switches, mingpt, old_mingpt, nanogpt, nanogpt_nested),
    *(llm_c, transformer_lens, nano),
]


@pytest.fixture(params=SOURCES, ids=lambda source: source.__name__)
def converted(request, tmp_path):
    """(the model as it stands, the folder into which the command line wrote it)."""
    (tmp_path / "source").mkdir()
    source, options = request.param(tmp_path / "source")
    folder = tmp_path / "out"
    assert main(["convert", str(source), str(folder), *options]) == 0
    given = dict(zip(options[::2], options[1::2], strict=True))
    n_head = int(given["--n-head"]) if "--n-head" in given else None
    return load(source, n_head=n_head, activation_function=given.get("--activation-function")), folder


def test_the_same_bits_come_back(converted):
    model, folder = converted
    again = load(folder)
    config = {**vars(model.config), "bos_token_id": None, "tie_word_embeddings": model.lm_head is model.wte}
    assert {**vars(again.config), "bos_token_id": None} == config
    assert again.config.bos_token_id == (model.config.bos_token_id if model.n_vocab > 50256 else None)
    ours, theirs = named_weights(model), named_weights(again)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert type(again.vocabulary) is type(model.vocabulary)
    assert again.trained_tokens == model.trained_tokens and again.token_names == model.token_names
    assert again.token_strings([0, 1]) == model.token_strings([0, 1])
    assert not [path.name for path in folder.iterdir() if not path.name.endswith((".json", ".safetensors"))]
    (folder / "plain").touch()
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # whoever may read one may read all


def test_transformers_loads_it(converted):
    """With no key missing and none left over, and the same logits: 1e-5 of the largest, which float32 keeps."""
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="`pip install torch transformers` makes this test run")
    import torch
    from transformers import GPT2LMHeadModel

    model, folder = converted
    theirs, info = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: keys for kind, keys in info.items() if keys}
    assert not wrong and theirs.dtype == torch.float32
    tokens = np.arange(min(6, model.n_ctx)) % model.n_vocab
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(tokens[None])).logits[0].numpy()
    expected = model.run(tokens).logits
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


# ---- what goes with the weights ------------------------------------------------------------------------


def test_names_and_vocabularies_go_with_it(tmp_path):
    model = tiny_model()
    model.token_names, model.trained_tokens = [f"t{i}" for i in range(29)], frozenset({1, 2})
    model.vocabulary = Characters({"é": 0, "\n": 28})
    again = load(save_checkpoint(model, tmp_path / "a"), np.float64)
    assert again.token_strings([3]) == ["t3"] and again.trained_tokens == {1, 2}
    assert again.tokenize("é\n").tolist() == [0, 28] and again.dtype == np.float64
    assert np.array_equal(again.wte, model.wte)
    padded = tiny_model(vocab_size=50304, n_embd=2, n_head=1, n_layer=1)
    padded.vocabulary = GPT2()
    again = load(save_checkpoint(padded, tmp_path / "b"))
    assert isinstance(again.vocabulary, GPT2) and again.config.bos_token_id == 50256
    assert load(save_checkpoint(again, tmp_path / "c")).config == again.config


def test_a_vocabulary_given_on_the_command_line(tmp_path, capsys):
    meta = str(REFERENCE / "names_nanogpt" / "meta.pkl")
    as_torch(tmp_path / "model.pt", weights_of(), "linear")
    options = [*HEADS, *TANH, "--vocabulary", meta, "--json"]
    assert main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "out"), *options]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "out")}
    assert main(["top", "--model", str(tmp_path / "out"), "Ann"]) == 0


def test_weights_that_are_views_are_written_as_they_are(tmp_path):
    """Also in the other order of memory, which safetensors would write as it stands."""
    model = tiny_model()
    turned = np.asfortranarray(model.wpe)
    view = Model(model.config, model.wte, turned, model.h, model.ln_f, model.wte)
    assert np.array_equal(load(save_checkpoint(view, tmp_path / "a"), np.float64).wpe, model.wpe)


# ---- errors -----------------------------------------------------------------------------------------


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_where_it_cannot_be_written(tmp_path, capsys, monkeypatch):
    """Each is said before the source is read."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at_all")
    (tmp_path / "locked").mkdir()
    before = files_of(tmp_path)
    real = os.access
    locked = str(tmp_path / "locked")  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != locked and real(path, mode))
    for name, message in {
        "full": "full holds files already: give a new folder",
        "file": "file is no folder: give a new one",
        "file/below": "cannot write ",
        "locked": "locked is read-only",
        "locked/a/b": "locked is read-only",
        "link": "link is no folder: give a new one",
        "a\0b": "cannot write ",
    }.items():
        assert main(["convert", "no such model", f"{tmp_path}/{name}"]) == 1, name
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1 and "no such model" not in err, (name, err)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "do not say"),
        (TANH, "how many heads"),
        (HEADS, "which GELU"),
        ([*TANH, "--n-head", "5"], "n_embd 12 must be a multiple of n_head 5"),
        ([*TANH, "--n-head", "0"], "n_head must be a positive whole number, not 0"),
        ([*TANH, *HEADS, "--vocabulary", "gpt2"], "this model has 29 tokens, and GPT-2's vocabulary 50257"),
        ([*TANH, *HEADS, "--vocabulary", "no.pkl"], "no.pkl is missing"),
    ],
)
def test_what_must_be_said_of_the_source(tmp_path, capsys, options, message):
    as_torch(tmp_path / "model.pt", weights_of(), "linear")
    assert main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "out"), *options]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert files_of(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("was_there", [False, True])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, error, was_there):
    """So that the next try finds no files in its way."""
    if was_there:
        (tmp_path / "out").mkdir()
    write = convert.write_whole

    def failing(path, content):
        if path.name == "config.json":
            raise error
        write(path, content)

    monkeypatch.setattr(convert, "write_whole", failing)
    with pytest.raises(NanopatchError if isinstance(error, OSError) else KeyboardInterrupt):
        save_checkpoint(load("nano"), tmp_path / "out")
    assert files_of(tmp_path) == (["out"] if was_there else [])
    monkeypatch.undo()
    save_checkpoint(load("nano"), tmp_path / "out")


def test_what_a_killed_process_leaves_is_no_model(tmp_path):
    """config.json is the last: without it the number of heads is asked for."""
    code = (
        "import os, sys, nanopatch.model.convert as c, nanopatch\n"
        "write = c.write_whole\n"
        "def killed(path, content):\n"
        "    if path.name == 'config.json': os._exit(9)\n"
        "    write(path, content)\n"
        "c.write_whole = killed\n"
        "c.save_checkpoint(nanopatch.load('nano'), sys.argv[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")]).returncode == 9
    assert "model.safetensors" in files_of(tmp_path / "out")
    with pytest.raises(NanopatchError, match="do not say"):
        load(tmp_path / "out")
    with pytest.raises(NanopatchError, match="holds files already"):
        save_checkpoint(load("nano"), tmp_path / "out")
