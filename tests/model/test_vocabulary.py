"""Vocabularies: characters, padded and extended GPT-2s, and tokenizers of other programs, through the whole library."""

import copy
import json
import pickle
import sys

import numpy as np
import pytest
from conftest import REFERENCE, tiny_config, tiny_model
from writers import llmc

import nanopatch
from nanopatch import Experiment, NanopatchError, generate, load, sweep
from nanopatch.cli import main
from nanopatch.experiments.pairs import read_pairs
from nanopatch.model import hub, tokenizer
from nanopatch.model.checkpoint import tensor_shapes
from nanopatch.model.convert import save_checkpoint
from nanopatch.model.vocabulary import GPT2, Characters, Tokenizers, read
from nanopatch.results.sweep import Sweep

NAMES = REFERENCE / "names_nanogpt"
PAIR = Experiment("Ann has a ", "Bob has a ", "c", "d")


@pytest.fixture(scope="module")
def names():
    """A trained character-level model."""
    return load(NAMES, activation_function="gelu")


@pytest.fixture(scope="module")
def folder(names, tmp_path_factory):
    """The same as a folder that the command line loads."""
    return str(save_checkpoint(names, tmp_path_factory.mktemp("names") / "hf"))


# ---- characters ---------------------------------------------------------------------------------


def test_an_experiment_in_characters(names, tmp_path):
    """The names differ in every letter, and nothing else does. The things follow from the names."""
    result = sweep(names, PAIR)
    assert result.baseline_clean > 3 and result.baseline_corrupted < -3
    assert np.abs(result.grid[0, 3:] - result.baseline_corrupted).max() < 1e-4  # these tokens are the same
    assert result.normalised[0, 2] > 0.9  # the last letter of the name tells it
    assert list(result.clean_tokens) == list("Ann has a ") and result.notes == []
    assert "␣" in str(result)
    for ending in ("npz", "json"):
        result.save(tmp_path / f"x.{ending}")
        again = Sweep.load(tmp_path / f"x.{ending}")
        assert again.clean_tokens == result.clean_tokens and np.array_equal(again.grid, result.grid)
    result.save(tmp_path / "x.csv")
    result.save(tmp_path / "x.png")


def test_labels_show_what_cannot_be_seen(names):
    result = sweep(names, Experiment("Ann has a cat.\n", "Bob has a dog.\n", "A", "B"))
    assert result.clean_tokens[-1] == "\n"
    labels = [text.get_text() for ax in result.plot().axes for text in ax.get_xticklabels()]
    assert any("␣" in label for label in labels) and any("\\n" in label for label in labels)
    assert all("\n" not in label.replace("\n→", "") or "→" in label for label in labels), labels
    assert "\\n" in str(result)


def test_what_it_generates_is_text(names):
    assert generate(names, "Dee has a ", 15, as_text=True) == "fox.\n" + generate(
        names, "Dee has a fox.\n", 10, as_text=True
    )
    assert names.detokenize(names.tokenize("Ann\n")) == "Ann\n"


def test_errors_of_characters(names):
    with pytest.raises(NanopatchError, match=r"^'M' is none of the 24 characters of this model: '\\n \.ABCD"):
        names.tokenize("Michelle")
    with pytest.raises(NanopatchError, match=r"^'\\ud800' is none of the 24 characters"):
        names.tokenize("\ud800")
    with pytest.raises(NanopatchError, match=r"^the answer 'cat' is 3 tokens, \['c', 'a', 't'\], and must be one$"):
        Experiment("Ann has a ", "Bob has a ", "cat", "dog").tokens(names)
    with pytest.raises(NanopatchError, match=r"^the prompt is empty: give it at least one token$"):
        names.tokenize("")
    with pytest.raises(NanopatchError, match=r"bos_token_id 50256, its vocabulary 0 to 23; leave out prepend_bos"):
        names.tokenize("Ann", prepend_bos=True)
    with pytest.raises(NanopatchError, match=r"has no special tokens: leave out special_tokens"):
        names.tokenize("Ann", special_tokens=True)


def test_a_vocabulary_without_a_space_or_without_the_angle_brackets():
    """Neither note of GPT-2's habits is about this model; and looking for them is no error."""
    model = tiny_model()
    model.vocabulary = Characters({c: i for i, c in enumerate("abcdefgh<|endoftx>")})
    result = sweep(model, Experiment("ab<|endoftext|>"[:12], "bb<|endoftext|>"[:12], "a", "b"))
    assert not any("leading space" in note or "special" in note for note in result.notes)
    with pytest.raises(NanopatchError, match=r"is 2 tokens, \['a', 'b'\], and must be one$"):
        sweep(model, Experiment("a", "b", "ab", "b"))
    whole = tiny_model(n_positions=20)
    whole.vocabulary = model.vocabulary
    assert not any(
        "special" in note for note in sweep(whole, Experiment("a<|endoftext|>", "b<|endoftext|>", "a", "b")).notes
    )


def test_ids_without_a_character():
    model = tiny_model()  # of 29 tokens
    model.vocabulary = Characters({"a": 0, "b": 1})
    assert model.token_strings([0, 28]) == ["a", "#28"] and model.detokenize([1, 28, 0]) == "b#28a"


def test_the_command_line(folder, capsys, tmp_path):
    assert main(["top", "--model", folder, "Ann has a ", "-k", "1"]) == 0
    assert capsys.readouterr().out.split()[-1] == "c"
    assert main(["top", "--model", folder, "Ann has a cat.", "-k", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["token"] == "\n"
    assert main(["tokens", "--model", folder, "A \n"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["0", "3", "A"],
        ["1", "1", "␣"],
        ["2", "0", "\\n"],
    ]
    texts = ["--clean", PAIR.clean, "--corrupted", PAIR.corrupted, "--answer", "c", "--wrong", "d"]
    assert main(["patch", "--model", folder, *texts, "-o", str(tmp_path / "x.png")]) == 0
    assert "␣" in capsys.readouterr().out
    for arguments, message in {
        ("top", "Ann xyz"): "'y' is none of the 24 characters",
        ("tokens", "A", "y"): "'y' is none of the 24 characters",
        ("top", "--bos", "A"): "no token to put before a prompt",
        ("top", "--special-tokens", "A"): "no special tokens",
        ("demo", "-o", str(tmp_path / "demo")): "this model cannot read the demo's prompts",
    }.items():
        assert main([*arguments, "--model", folder]) == 1
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1


def test_a_file_of_pairs(names, tmp_path):
    pairs = [PAIR, Experiment("Cid has a ", "Dee has a ", "h", "f")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair.to_dict()) + "\n" for pair in pairs))
    assert np.allclose(
        sweep(names, read_pairs(path)).grid, np.mean([sweep(names, pair).grid for pair in pairs], axis=0), rtol=1e-5
    )


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_the_vocabulary(names, again, folder):
    copied = again(names)
    assert np.array_equal(copied.tokenize("Ann"), names.tokenize("Ann")) and copied.config == names.config
    loaded = load(folder)
    loaded.vocabulary = Characters({"x": 0})
    assert again(loaded).tokenize("xx").tolist() == [0, 0]


# ---- which vocabulary a model is given ----------------------------------------------------------------


def characters_of(folder, ids):
    (folder / "vocab.json").write_text(json.dumps(ids))
    return folder / "vocab.json"


@pytest.fixture
def alone(names, tmp_path):
    """config.json and model.safetensors, and nothing else, of 24 tokens."""
    save_checkpoint(names, tmp_path / "alone")
    (tmp_path / "alone" / "vocab.json").unlink()
    return tmp_path / "alone"


def test_a_vocabulary_named_by_its_file(alone, tmp_path):
    assert load(alone).vocabulary is None
    for file in (NAMES / "meta.pkl", str(NAMES / "meta.pkl")):
        assert load(alone, vocabulary=file).tokenize("An").tolist() == [3, 17]
    characters_of(alone, {"x": 0, "y": 23})
    assert load(alone).tokenize("xy").tolist() == [0, 23]
    asked_for = load(alone, vocabulary=NAMES / "meta.pkl")  # comes first
    assert asked_for.tokenize("An").tolist() == [3, 17]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("gpt2", None, "this model has 24 tokens, and GPT-2's vocabulary 50257: it is another"),
        ("no.pkl", None, "no.pkl is missing: give the vocabulary's file, or 'gpt2'"),
        ("no.json", None, "no.json is missing: give the vocabulary's file, or 'gpt2'"),
        ("", None, "cannot read .*: it is not a regular file"),
        ("vocab.json", '{"ab": 0}', "does not say how text is cut into tokens: give a tokenizer.json"),
        ("vocab.json", '{"a": 24}', "'a' has the id 24, and this model's are 0 to 23"),
        ("vocab.json", '{"a": "1"}', "'a' has the id '1', and this model's are 0 to 23"),
        ("vocab.json", '{"a": 1, "b": 1}', "two characters have the same id"),
        ("vocab.json", "{", "cannot read .*vocab.json"),
        ("meta.pkl", pickle.dumps([1]), "holds no characters: it must be a dict with 'stoi'"),
        ("meta.pkl", pickle.dumps({"stoi": {"ab": 1}}), "holds no characters"),
        ("meta.pkl", pickle.dumps({"stoi": {"a": 99}}), "'a' has the id 99"),
        ("meta.pkl", pickle.dumps({"stoi": print}), "holds builtins.print, which could run code: it is not read"),
        ("tokenizer.json", '{"model": {}}', "cannot read .*tokenizer.json: "),
    ],
)
def test_a_vocabulary_that_cannot_be_used(alone, name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(NanopatchError, match=message):
        load(alone, vocabulary="gpt2" if name == "gpt2" else path)


def test_the_real_gpt2_is_known_by_its_hash(tmp_path, monkeypatch):
    """Of two files alone, 50,257 rows say nothing: other vocabularies have as many."""
    model = tiny_model(dtype=np.float32, vocab_size=50257, n_embd=2, n_head=1, n_layer=1)
    folder = save_checkpoint(model, tmp_path / "gpt2")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    unknown = load(folder)
    assert unknown.vocabulary is None
    with pytest.raises(NanopatchError, match=r"this model's vocabulary is not known, .*load\(..., vocabulary=...\)"):
        unknown.tokenize("Hello")
    assert load(folder, vocabulary="gpt2").tokenize("Hello").tolist() == [15496]
    monkeypatch.setattr(hub, "SHA256", frozenset({unknown.source.sha256}))
    assert load(folder).tokenize("Hello").tolist() == [15496]


def test_llm_cs_checkpoints_have_gpt2s(tmp_path):
    for n_vocab, known in ((50257, True), (50256, False)):
        config = tiny_config(vocab_size=n_vocab, n_embd=2, n_head=1, n_layer=1, n_inner=8)
        weights = {name: np.ones(shape) for name, shape in tensor_shapes(config).items()}
        (tmp_path / "gpt2.bin").write_bytes(llmc(weights, 1, n_padding=47))
        model = load(tmp_path / "gpt2.bin")
        assert (model.n_vocab, isinstance(model.vocabulary, GPT2)) == (n_vocab, known)


# ---- GPT-2's, padded or extended --------------------------------------------------------------------


@pytest.fixture(scope="module", params=[50304, 50258])
def larger(request):
    model = tiny_model(vocab_size=request.param, n_embd=2, n_head=1, n_layer=1, n_positions=16)
    model.vocabulary = GPT2()
    return model


def test_ids_past_gpt2s_are_numbers(larger):
    last = larger.n_vocab - 1
    assert larger.token_strings([15496, last]) == ["Hello", f"#{last}"]
    first, second = larger.tokenize("😀").tolist()
    assert larger.detokenize([first, second, last, 15496, 50256]) == f"😀#{last}Hello<|endoftext|>"
    assert larger.tokenize("<|endoftext|>", special_tokens=True).tolist() == [50256]
    assert sweep(larger, Experiment([last, 5], [7, 5], last, 7)).clean_tokens == (f"#{last}", "&")
    with pytest.raises(NanopatchError, match=f"token id {last + 1} is outside the vocabulary, 0 to {last}"):
        larger.detokenize([last + 1])
    lm_head = np.zeros_like(larger.wte)
    lm_head[last] = [100, 0]
    lm_head[last] *= np.sign(larger.run("Hello", sites="ln_final").ln_final[-1, 0])  # so that it is the likeliest
    model = nanopatch.Model(larger.config, larger.wte, larger.wpe, larger.h, larger.ln_f, lm_head)
    model.vocabulary = larger.vocabulary
    assert generate(model, "Hello", 1, as_text=True) == f"#{last}"
    assert nanopatch.metrics.top_tokens(model.next_logits("Hello"), 1)[0][0] == last


# ---- other tokenizers -------------------------------------------------------------------------------


TEXT = "the cat sat on the mat. the 😀 cat é sat, and the café "


@pytest.fixture(scope="module")
def bpe():
    """The text of a tokenizer.json of 290 tokens or fewer, which the package trained on a little text."""
    tokenizers = pytest.importorskip("tokenizers", reason="`pip install tokenizers` makes this test run")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    made.add_tokens(["[NAME]"])
    made.enable_truncation(2)  # which a prompt must not meet with
    made.enable_padding(length=20)
    return made.to_str()


@pytest.fixture
def reader(bpe, tmp_path):
    """A model with that tokenizer.json beside it. It has 300 tokens."""
    folder = save_checkpoint(tiny_model(vocab_size=300, n_positions=60, dtype=np.float32), tmp_path / "bpe")
    (folder / "tokenizer.json").write_text(bpe, encoding="utf-8")
    return load(folder)


def test_a_tokenizer_json_is_read_by_the_package(reader):
    assert isinstance(reader.vocabulary, Tokenizers)
    ids = reader.tokenize(TEXT)
    assert len(ids) > 15 and reader.detokenize(ids) == TEXT
    assert "".join(reader.token_strings(reader.tokenize("the cat sat"))) == "the cat sat"
    assert " cat" in reader.token_strings(ids)
    assert reader.detokenize([*ids[:2], 299, *ids[2:4]]) == "the cat#299 sat on"
    assert isinstance(generate(reader, "the cat", 3, as_text=True), str)
    result = sweep(reader, Experiment("the cat sat", "the mat sat", " cat", " sat"))
    assert result.clean_tokens == ("the", " cat", " sat")


def test_each_token_has_a_text_of_its_own(reader):
    texts = reader.token_strings(range(300))
    assert len(set(texts)) == 300 and all(texts)
    assert texts[299] == "#299"
    parts = reader.token_strings(reader.tokenize("😀"))
    assert len(parts) > 1 and not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_special_tokens_of_another_tokenizer(reader):
    (end,) = reader.tokenize("<|end|>", special_tokens=True)
    assert reader.token_strings(end) == ["<|end|>"] and reader.detokenize([end]) == "<|end|>"
    assert len(reader.tokenize("<|end|>")) > 3 and reader.detokenize(reader.tokenize("<|end|>")) == "<|end|>"
    assert len(reader.tokenize("[NAME]")) == 1  # an added token that is not special is one of its texts
    pair = Experiment("the<|end|>", " cat<|end|>", " cat", " sat")
    assert any("was read as text" in note for note in sweep(reader, pair).notes)
    as_one = Experiment("the<|end|>", " cat<|end|>", " cat", " sat", special_tokens=True)
    assert not any("was read as text" in note for note in sweep(reader, as_one).notes)


def test_text_that_is_no_text(reader):
    with pytest.raises(NanopatchError, match="^character 1 of the text .* is a byte that is not UTF-8"):
        reader.tokenize("a\udc80")


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_needs_no_tokenizer_json(reader, again, tmp_path):
    (tmp_path / "bpe" / "tokenizer.json").unlink()
    assert again(reader).tokenize(TEXT).tolist() == reader.tokenize(TEXT).tolist()
    save_checkpoint(reader, tmp_path / "again")
    assert load(tmp_path / "again").tokenize(TEXT).tolist() == reader.tokenize(TEXT).tolist()


def test_without_the_package_a_model_takes_ids(reader, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    model = load(tmp_path / "bpe")
    assert model.vocabulary is None and model.token_strings([3]) == ["#3"] and len(model.run([1, 2]).tokens) == 2
    with pytest.raises(NanopatchError, match=r'pip install "nanopatch\[tokenizers\]"'):
        model.tokenize("the cat")
    with pytest.raises(
        NanopatchError, match=r'another vocabulary than GPT-2\'s: .* pip install "nanopatch\[tokenizers\]"'
    ):
        load(tmp_path / "bpe", vocabulary=tmp_path / "bpe" / "tokenizer.json")
    assert main(["top", "--model", str(tmp_path / "bpe"), "the cat"]) == 1
    assert 'pip install "nanopatch[tokenizers]"' in capsys.readouterr().err


def test_a_tokenizer_of_more_tokens_than_the_model(bpe, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(bpe, encoding="utf-8")
    with pytest.raises(NanopatchError, match=r"has ids up to 2\d\d, and this model's are 0 to 99"):
        read(path, 100)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
)
def test_gpt2s_tokens_cut_in_another_way_are_not_gpt2s(changes, tmp_path):
    pytest.importorskip("tokenizers", reason="`pip install tokenizers` makes this test run")
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": tokenizer._published_vocabulary(), "merges": []}
    content = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": plain, "model": model}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert isinstance(read(path, 50304), GPT2)
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    assert isinstance(read(path, 50304), Tokenizers)
