"""GPT-2's tokens: the shipped ranks, the encoding against known values and an independent one, bad prompts."""

import hashlib
import json
import os
import random
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import regex
from conftest import tiny_model
from hypothesis import example, given
from hypothesis import strategies as st

from nanopatch import Experiment, NanopatchError, generate, load
from nanopatch.cli import main
from nanopatch.model import tokenizer, vocabulary
from nanopatch.model.vocabulary import GPT2

#: Text and its tokens as others published them, or as GPT-2's encoder.json and vocab.bpe give them.
KNOWN = {
    "Hello, world!": [15496, 11, 995, 0],
    "Not all heroes wear capes.": [3673, 477, 10281, 5806, 1451, 274, 13],  # picoGPT's README
    "Alan Turing theorized that computers would one day become": [
        *(36235, 39141, 18765, 1143, 326, 9061, 561, 530, 1110, 1716)  # the same
    ],
    "Michelle Jones was a top-notch student. Michelle": [
        *(48736, 5437, 373, 257, 1353, 12, 1662, 354, 3710, 13, 16738)
    ],
    "\n": [198],
    " ": [220],
    "": [],
}


def test_the_shipped_rank_file_is_the_published_one():
    # The SHA-256 that tiktoken itself pins for it.
    digest = hashlib.sha256(tokenizer.RANK_FILE.read_bytes()).hexdigest()
    assert digest == "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


@pytest.mark.parametrize("text", KNOWN)
def test_known_encodings(text):
    assert tokenizer.encode(text) == KNOWN[text]
    assert tokenizer.decode(KNOWN[text]) == text


def test_the_published_reference_prompts_have_their_published_tokens():
    path = files("nanopatch.data") / "gpt2_transformer_explainer.json"
    prompts = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    assert len(prompts) == 5
    for prompt in prompts:
        assert tokenizer.encode(prompt["prompt"]) == prompt["token_ids"]


def test_experiment_3_has_16_and_15_tokens():
    rest = " co-founded Tesla and revolutionized the electric car industry. Elon"
    clean, corrupted = tokenizer.encode("Elon Musk" + rest), tokenizer.encode("Steve Jobs" + rest)
    assert (len(clean), len(corrupted)) == (16, 15)
    assert [tokenizer.decode([token]) for token in clean[:3]] == ["El", "on", " Musk"]
    assert [tokenizer.decode([token]) for token in corrupted[:2]] == ["Steve", " Jobs"]
    assert clean[3:] == corrupted[2:]


RANKS = {tokenizer.encoding().decode_single_token_bytes(token): token for token in range(50256)}


def bpe(text):
    """GPT-2's encoding as its paper's code does it: cut with its regular expression, merge the best pair, repeat."""
    cut = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokens = []
    for piece in regex.findall(cut, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while len(parts) > 1:
            pairs = [a + b for a, b in zip(parts, parts[1:], strict=False)]
            best = min(pairs, key=lambda pair: RANKS.get(pair, len(RANKS)))
            if best not in RANKS:
                break
            at = pairs.index(best)
            parts[at : at + 2] = [best]
        tokens += [RANKS[part] for part in parts]
    return tokens


texts = st.text() | st.text(alphabet="ab Zz'stlmdrve09.,-\n\t\r\u00a0\u3000é東ñ🙂<|>", max_size=40)


@given(texts)
@example("I'll say it's 12  o'clock,\n\n  he'd've  ")
@example("<|endoftext|>")
@example("naïve 東京 🙂\u200d x\u0301")
def test_any_text_encodes_as_the_plain_algorithm_does_and_comes_back(text):
    tokens = tokenizer.encode(text)
    assert tokens == bpe(text)
    assert tokenizer.decode(tokens) == text


def test_endoftext_is_ordinary_text_unless_asked_for():
    ordinary = [27, 91, 437, 1659, 5239, 91, 29]
    assert tokenizer.encode("a<|endoftext|>") == [64, *ordinary]
    assert tokenizer.encode("a<|endoftext|>", special_tokens=True) == [64, 50256]
    assert tokenizer.decode([50256]) == "<|endoftext|>"


@pytest.mark.parametrize("token", [50257, -1, 2**70, 1.0, True, "a", None, [1]])
def test_decoding_what_is_no_token_id_is_an_error(token):
    with pytest.raises(NanopatchError, match="is not a token id: give whole numbers from 0 to 50256"):
        tokenizer.decode([0, token])


def test_it_needs_no_network_and_writes_no_cache(tmp_path):
    script = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from nanopatch.model import tokenizer
print(tokenizer.encode("Hello, world!"))
"""
    folders = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    environment = os.environ | {name: str(tmp_path) for name in folders} | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[15496, 11, 995, 0]\n", "")
    assert list(tmp_path.iterdir()) == []


# ---- whose vocabulary a folder has ----------------------------------------------------------------


@pytest.fixture(scope="module")
def vocab():
    """GPT-2's vocab.json, spelled with the table of bytes that its published code computes."""
    byte_values = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = byte_values[:]
    for byte in range(256):
        if byte not in byte_values:
            byte_values.append(byte)
            characters.append(256 + len(byte_values) - 1 - 188)
    spell = dict(zip(byte_values, map(chr, characters), strict=True))
    vocab = {"".join(spell[byte] for byte in text): token for text, token in RANKS.items()} | {"<|endoftext|>": 50256}
    # Entries of the published file, to know that this is it.
    known = {"!": 0, '"': 1, "ÿ": 187, "Ā": 188, "Ċ": 198, "Ġ": 220, "Ġt": 256, "Ġthe": 262, "ĠJones": 5437}
    assert {token: vocab[token] for token in known} == known and len(vocab) == 50257
    return vocab


def permuted(vocab):
    """The same tokens under each other's ids, as another tokenizer of the same size would have them."""
    ids = list(vocab.values())
    random.Random(0).shuffle(ids)
    return dict(zip(vocab, ids, strict=True))


def one_pair_swapped(vocab):
    return vocab | {"Ġa": vocab["Ġthe"], "Ġthe": vocab["Ġa"]}


def one_missing(vocab):
    return {token: number for token, number in vocab.items() if token != "Ġthe"}


def extended(vocab):
    return vocab | {"[PAD]": 50257}


@pytest.mark.parametrize(
    "change, same", [(dict, True), (extended, True), (permuted, False), (one_pair_swapped, False), (one_missing, False)]
)
def test_a_vocabulary_is_gpt2s_only_if_it_is_the_same(vocab, change, same, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(change(vocab)), encoding="utf-8")
    assert isinstance(vocabulary.find(tmp_path, 50258), GPT2) is same
    assert vocabulary.find(tmp_path, 50256) is None  # the model is too small for GPT-2's
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": change(vocab), "merges": []}})
    )
    assert isinstance(vocabulary.find(tmp_path, 50258), GPT2) is same


@pytest.mark.parametrize("content", ["[]", "{}", '{"model": null}', "3"])
def test_a_vocabulary_file_of_another_kind_says_nothing(content, tmp_path):
    (tmp_path / "vocab.json").write_text(content)
    assert vocabulary.find(tmp_path, 50257) is None


def test_a_folder_without_vocabulary_files_says_nothing(tmp_path):
    assert vocabulary.find(tmp_path, 50257) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"[" * 100_000])
def test_a_vocabulary_file_that_cannot_be_read_is_an_error(content, tmp_path):
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(NanopatchError, match="^cannot read .*vocab.json: ") as caught:
        vocabulary.find(tmp_path, 50257)
    assert "\n" not in str(caught.value)


# ---- prompts of a model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    """A tiny model with GPT-2's vocabulary, and room for 12 tokens."""
    model = tiny_model(n_layer=1, n_embd=4, n_inner=4, vocab_size=tokenizer.N_VOCAB)
    model.vocabulary = GPT2()
    return model


def test_a_prompt_may_be_text_ids_or_a_batch_of_ids(reader):
    hello = [15496, 11, 995, 0]
    for prompt in ("Hello, world!", hello, tuple(hello), np.array(hello, np.uint16), np.array(hello, np.int32)):
        tokens = reader.tokenize(prompt)
        assert tokens.dtype == np.int64 and tokens.tolist() == hello
    assert reader.tokenize([hello, hello]).tolist() == [hello, hello]
    assert reader.tokenize("Hello, world!", prepend_bos=True).tolist() == [50256, *hello]
    assert reader.tokenize([hello, hello], prepend_bos=True).tolist() == [[50256, *hello]] * 2
    assert reader.tokenize("<|endoftext|>").size == 7
    assert reader.tokenize("<|endoftext|>", special_tokens=True).tolist() == [50256]
    assert reader.tokenize("", prepend_bos=True).tolist() == [50256]


def test_tokens_come_back_as_text(reader):
    assert reader.detokenize([15496, 11, 995, 0]) == "Hello, world!"
    assert reader.detokenize(np.array([15496])) == "Hello"
    assert reader.detokenize(15496) == "Hello"
    assert reader.detokenize([]) == ""
    assert reader.token_strings([15496, 11, 995, 0]) == ["Hello", ",", " world", "!"]
    half_of_a_character = reader.tokenize("東")[:1]
    assert reader.detokenize(half_of_a_character) == "\N{REPLACEMENT CHARACTER}"


BAD_PROMPTS = {
    "empty text": ("", "the prompt is empty"),
    "no ids": ([], "the prompt is empty"),
    "batch of nothing": ([[], []], "the prompt is empty"),
    "empty array": (np.zeros((0, 4), int), "the prompt is empty"),
    "text too long": (" a" * 80, "the prompt has 80 tokens, and this model reads 12 at most"),
    "ids too long": ([1] * 13, "the prompt has 13 tokens, and this model reads 12 at most"),
    "batch too long": ([[1] * 13] * 2, "the prompt has 13 tokens, and this model reads 12 at most"),
    "id out of range": ([1, 50257], "token id 50257 is outside the vocabulary, 0 to 50256"),
    "negative id": ([[1, 2], [3, -1]], "token id -1 is outside the vocabulary, 0 to 50256"),
    "huge id": ([2**70], "whole-number token ids"),
    "float ids": ([1.0, 2.0], "whole-number token ids"),
    "bool ids": ([True, False], "whole-number token ids"),
    "list of texts": (["Hello", "world"], "one text at a time: run each of these 2 prompts alone"),
    "bytes": (b"Hello", "whole-number token ids"),
    "nothing": (None, "whole-number token ids"),
    "ragged batch": ([[1, 2], [3]], "a batch needs prompts of one length: run the others one by one"),
    "one number": (5, r"shape \(n_tokens,\) or \(batch, n_tokens\), not \(\)"),
    "three axes": ([[[1]]], r"shape \(n_tokens,\) or \(batch, n_tokens\), not \(1, 1, 1\)"),
}


@pytest.mark.parametrize("prompt, message", BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_a_bad_prompt_is_one_clear_line(reader, prompt, message):
    for use in (reader.tokenize, reader.run, reader.embed, lambda prompt: list(reader.steps(prompt))):
        with pytest.raises(NanopatchError, match=message) as caught:
            use(prompt)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[1, 50257], [1, -1], [2**70], [1.0, 2.0], [True], ["a"], [[1, 2], [3, 4]], [[[1]]]])
def test_bad_ids_have_no_text(reader, ids):
    with pytest.raises(NanopatchError):
        reader.detokenize(ids)
    with pytest.raises(NanopatchError):
        reader.token_strings(ids)


def test_a_model_with_another_vocabulary_takes_ids_only():
    model = tiny_model()
    with pytest.raises(NanopatchError, match="vocabulary is not known.*give token ids, not 'Hello'"):
        model.tokenize("Hello")
    with pytest.raises(NanopatchError, match="vocabulary is not known"):
        model.detokenize([1, 2])
    assert model.token_strings([1, 2]) == ["#1", "#2"]
    assert model.tokenize([1, 2]).tolist() == [1, 2]
    with pytest.raises(
        NanopatchError,
        match="no token to put before a prompt: .* bos_token_id 50256, its vocabulary 0 to 28",
    ):
        model.tokenize([1, 2], prepend_bos=True)


def test_the_token_before_a_prompt_is_the_checkpoints_own():
    model = tiny_model(bos_token_id=5)
    assert model.tokenize([1, 2], prepend_bos=True).tolist() == [5, 1, 2]
    assert model.tokenize([[1], [2]], prepend_bos=True).tolist() == [[5, 1], [5, 2]]
    with pytest.raises(NanopatchError, match="no token to put before a prompt: its config.json has bos_token_id None"):
        tiny_model(bos_token_id=None).tokenize([1], prepend_bos=True)


def test_endoftext_in_a_prompt_is_that_token_if_asked_for(capsys):
    nano, text = load("nano"), "<|endoftext|>The capital of France is"
    ids = nano.tokenize(text, special_tokens=True)
    assert ids[0] == tokenizer.ENDOFTEXT_ID and len(nano.tokenize(text)) == len(ids) + 6
    assert np.array_equal(nano.run(text, special_tokens=True).logits, nano.run(ids).logits)
    *_, last = nano.steps(text, special_tokens=True, sites="logits")
    assert np.array_equal(last.array, nano.run(ids).logits)
    assert np.array_equal(nano.next_logits(text, special_tokens=True), nano.next_logits(ids))
    assert np.array_equal(generate(nano, text, 2, special_tokens=True), generate(nano, ids, 2))
    pair = Experiment(text, text.replace("France", "Italy"), " Paris", " Rome", special_tokens=True)
    assert np.array_equal(pair.tokens(nano).clean, ids)
    assert main(["top", text, "--special-tokens", "--json"]) == 0
    with_token = json.loads(capsys.readouterr().out)
    assert main(["top", ",".join(map(str, ids)), "--ids", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == with_token


@pytest.mark.parametrize("text", ["a \udcff b", "\ud83d"])
def test_text_that_is_no_text_is_refused(text, capsys):
    """A byte that is not UTF-8 comes out of a command line as a lone surrogate. tiktoken reads it as U+FFFD."""
    nano = load("nano")
    for asked in (nano.run, nano.tokenize, tokenizer.encode, lambda given: generate(nano, given, 1)):
        with pytest.raises(NanopatchError, match="is a byte that is not UTF-8, or half of a character"):
            asked(text)
    for command in (["top", text], ["tokens", text], ["edges", "--clean", text, "--corrupted", text]):
        answers = ["--answer", " a", "--wrong", " b"] if command[0] == "edges" else []
        assert main([*command, *answers]) == 1
        assert "not UTF-8" in capsys.readouterr().err
