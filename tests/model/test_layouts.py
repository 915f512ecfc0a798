"""Any program's GPT-2 gives the bits of the same model in the published layout, or one line that says what was seen."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import writers
from conftest import models, tiny_config, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nanopatch
from nanopatch import NanopatchError
from nanopatch.model.backward import named_weights
from nanopatch.model.checkpoint import build
from nanopatch.model.config import published_terms, read_config

PREFIXES = ("transformer.", "module.", "_orig_mod.")
CONTAINERS = ("safetensors", "zip", "older", "zip, nested", "older, nested")


def assert_same_bits(model, other):
    ours, expected = named_weights(model), named_weights(other)
    assert ours.keys() == expected.keys() and model.config == other.config
    for name, array in expected.items():
        assert ours[name].dtype == array.dtype and ours[name].tobytes() == array.tobytes(), name


def write(path, content):
    path.write_bytes(content)
    return path


def write_config(folder, config, **changes):
    terms = {**vars(config), "model_type": "gpt2", **changes}
    (folder / "config.json").write_text(json.dumps({name: v for name, v in terms.items() if v != "left out"}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_any_model_in_any_layout_and_container_gives_the_same_bits(tmp_path, data):
    one_of = lambda *items: data.draw(st.sampled_from(items))  # noqa: E731
    model, number_format = data.draw(models()), one_of("F64", "F32", "F16", "BF16")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weights = {name: writers.rounded(array, number_format) for name, array in named_weights(model).items()}
    weights.pop("lm_head.weight", None)
    config = replace(model.config, tie_word_embeddings=True)
    layout, has_biases, is_tied = one_of(*writers.LAYOUTS), data.draw(st.booleans()), data.draw(st.booleans())
    if not has_biases:
        weights |= {name: np.zeros_like(array) for name, array in weights.items() if name.endswith(".bias")}
    if not is_tied:
        weights["lm_head.weight"] = writers.rounded(rng.normal(size=weights["wte.weight"].shape), number_format)
    expected = build(config, weights, model.dtype)

    given = weights if has_biases or layout == "TransformerLens" else without(weights, ".bias")
    if is_tied and (stored := one_of("wte", "lm_head", "both")) != "wte":
        given = given | {"lm_head.weight": given["wte.weight"]}
        given = without(given, "wte.weight") if stored == "lm_head" else given
    prefix = "".join(data.draw(st.lists(st.sampled_from(PREFIXES), max_size=3)))
    tensors = {
        (prefix if name != "lm_head.weight" else prefix.replace("transformer.", "")) + name: (array, number_format)
        for name, array in writers.in_layout(given, layout, model.n_head).items()
    }
    buffer = {"old minGPT": "blocks.0.attn.mask", "TransformerLens": "blocks.0.attn.mask"}.get(layout, "h.0.attn.bias")
    if data.draw(st.booleans()):
        tensors[prefix + buffer] = (np.tri(4)[None, None], one_of("BOOL", "U8", "F32"))
        if layout in ("published", "linear"):
            tensors[prefix + "h.0.attn.masked_bias"] = (np.array(-1e4), one_of("F32", "F16"))
    names = [*tensors]
    tensors = {names[i]: tensors[names[i]] for i in rng.permutation(len(names))}

    for path in tmp_path.iterdir():
        path.unlink()
    container = one_of(*CONTAINERS)
    if container == "safetensors":
        (tmp_path / "model.safetensors").write_bytes(writers.safetensors(tensors))
    else:
        ways = ("plain", "transposed", "sliced", "offset", "parameter")
        made = {name: writers.tensor(*pair, one_of(*ways)) for name, pair in tensors.items()}
        if is_tied and data.draw(st.booleans()):  # one storage for all that have the same numbers
            seen = {}
            made = {name: seen.setdefault((t.storage.tobytes(), t.shape, t.strides), t) for name, t in made.items()}
        content = one_of(writers.ordered, dict)(made)
        if container.endswith("nested"):
            step = writers.tensor(np.array(7.0), "F32")
            content = {
                "optimizer": {"state": {0: {"step": step, "exp_avg": step}}, "param_groups": [{"betas": (0.9, 0.95)}]},
                one_of("model", "state_dict"): content,
                "model_args": {"n_layer": model.n_layer, "n_head": model.n_head, "block_size": 12, "dropout": 0.0},
                "iter_num": 2000,
                "best_val_loss": step,
            }
        writer = writers.torch_zip if container.startswith("zip") else writers.torch_older
        (tmp_path / f"model{one_of('.pt', '.pth', '.ckpt', '.bin')}").write_bytes(writer(content))
    says_heads = container.endswith("nested") or layout == "TransformerLens"
    left_out = {"n_head": "left out", "n_embd": "left out", "n_layer": None} if says_heads else {"vocab_size": None}
    write_config(tmp_path, config, **left_out)
    assert_same_bits(nanopatch.load(tmp_path, model.dtype), expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data())
def test_any_model_as_a_file_of_llm_c_gives_the_same_bits(tmp_path, data):
    """The file alone says everything; rows of padding are left out."""
    n_head, number_format = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(["F32", "BF16"]))
    d = n_head * data.draw(st.integers(1, 5))
    sizes = dict(n_head=n_head, n_embd=d, n_inner=4 * d, n_layer=data.draw(st.integers(1, 3)))
    model = tiny_model(data.draw(st.integers(0, 99)), **sizes)
    weights = {name: writers.rounded(array, number_format) for name, array in named_weights(model).items()}
    path = tmp_path / "model.bin"
    path.write_bytes(writers.llmc(weights, n_head, number_format, data.draw(st.integers(0, 3))))
    assert_same_bits(nanopatch.load(path, model.dtype), build(model.config, weights, model.dtype))


# ---- what is refused ------------------------------------------------------------------------------


MODEL = tiny_model(dtype=np.float32)
WEIGHTS = named_weights(MODEL)
LINEAR = writers.in_layout(WEIGHTS, "linear", 2)
LENS = writers.in_layout(WEIGHTS | {"lm_head.weight": WEIGHTS["wte.weight"]}, "TransformerLens", 2)


def without(tensors, ending):
    return {name: array for name, array in tensors.items() if not name.endswith(ending)}


def error_of(path, **options):
    with pytest.raises(NanopatchError) as caught:
        nanopatch.load(path, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 700
    return message


def save(folder, tensors, **changes):
    write_config(folder, MODEL.config, **changes)
    pairs = {name: (array, "F32") for name, array in tensors.items()}
    (folder / "model.safetensors").write_bytes(writers.safetensors(pairs))
    return folder


def flipped(tensors, *names):
    return {name: array.T if name in names else array for name, array in tensors.items()}


ALL_FOUR = [f"h.1.{name}" for name in writers.LINEAR]
REFUSED = {
    "some biases": (without(LINEAR, "c_fc.bias"), r"lacks h\.0\.mlp\.c_fc\.bias, h\.1\.mlp"),
    "one bias only": (
        {name: a for name, a in LINEAR.items() if not name.endswith(".bias") or name == "ln_f.bias"},
        r"lacks h\.0\.ln_1\.bias.*seen: linear weights stored \(n_out, n_in\)",
    ),
    "one transposed": (
        flipped(WEIGHTS, "h.1.attn.c_attn.weight"),
        r"mixes two layouts: h\.1\.attn\.c_attn\.weight is stored \(n_out, n_in\), the other way round than h\.0",
    ),
    "three of four transposed": (flipped(WEIGHTS, *ALL_FOUR[:3]), "mixes two layouts"),
    "a block transposed": (flipped(WEIGHTS, *ALL_FOUR), "mixes two layouts"),
    "all but one transposed": (flipped(LINEAR, "h.2.mlp.c_proj.weight"), "mixes two layouts"),
    "an unknown prefix": (
        {f"model.transformer.{name}": array for name, array in WEIGHTS.items()},
        r"its keys start with 'model\.', such as 'model\.transformer\.wte\.weight'",
    ),
    "an unknown prefix inside": (
        {f"transformer.gpt.{name}": array for name, array in LINEAR.items()},
        r"its keys start with 'gpt\.'",
    ),
    "an unknown prefix of old minGPT": (
        {f"net.{name}": array for name, array in writers.old_mingpt(WEIGHTS, 2).items()},
        r"its keys start with 'net\.', such as 'net\.blocks",
    ),
    "with and without a prefix": (
        WEIGHTS | {"transformer.wte.weight": WEIGHTS["wte.weight"]},
        r"two tensors 'wte\.weight', with and without a prefix",
    ),
    "a block missing": ({n: a for n, a in LINEAR.items() if not n.startswith("h.1.")}, r"lacks h\.1\.ln_1"),
    "folded": (
        without(LENS, ("ln1.w", "ln1.b", "ln2.w", "ln2.b", "ln_final.w", "ln_final.b")),
        "LayerNorms are folded",
    ),
    "a bias of the unembedding": (LENS | {"unembed.b_U": np.ones(29)}, r"unembed\.b_U is not 0"),
    "heads of two sizes": (
        LENS | {"blocks.1.attn.W_O": LENS["blocks.1.attn.W_O"].transpose(1, 0, 2)},
        r"blocks\.1\.attn has W_Q \(2, 12, 6\), b_Q \(2, 6\) and W_O \(6, 2, 12\)",
    ),
    "a head's bias the other way round": (
        LENS | {f"blocks.1.attn.b_{name}": LENS["blocks.1.attn.b_Q"].T for name in "QKV"},
        r"blocks\.1\.attn has .* b_Q \(6, 2\)",
    ),
    "a head's weights of no axes": (LENS | {"blocks.1.attn.W_O": np.ones(())}, r"W_O has shape \(\); it must have 3"),
    "two heads' weights differ": (LENS | {"blocks.0.attn.W_K": np.ones((2, 12, 5))}, "have different shapes"),
    "keys and no queries": (without(LENS, "blocks.0.attn.W_Q"), r"blocks\.0\.attn\.W_K|lacks h\.0"),
    "TransformerLens' and its own": (LENS | {"wte.weight": WEIGHTS["wte.weight"]}, "mixes two layouts|wte"),
    "old positions of no axes": (writers.old_mingpt(WEIGHTS, 2) | {"pos_emb": np.ones(())}, "pos_emb has shape"),
    "old positions twice": (writers.old_mingpt(WEIGHTS, 2) | {"pos_emb": np.ones((2, 12, 12))}, "first axis must be 1"),
    "old queries of no axes": (
        writers.old_mingpt(WEIGHTS, 2) | {f"blocks.0.attn.{n}.weight": np.ones(()) for n in ("query", "key", "value")},
        r"query\.weight has shape \(\); it must have 2 axes",
    ),
    "an embedding of no axes": (LINEAR | {"wte.weight": np.ones(())}, r"wte\.weight has shape \(\)|n_embd"),
    "a long name": (LINEAR | {"h." + "1" * 5000 + ".ln_1.weight": np.ones(12)}, "name has 5014 characters"),
    "many axes": (LINEAR | {"ln_f.weight": np.ones((1,) * 30)}, r"ln_f\.weight has shape \(1, 1"),
    "no numbers but a shape": (
        without(LINEAR, ".bias") | {"h.0.mlp.c_fc.weight": np.ones((0, 2**50))},
        r"lacks h\.0\.mlp\.c_fc\.bias",
    ),
}


@pytest.mark.parametrize("tensors, message", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named(tmp_path, tensors, message):
    error = error_of(save(tmp_path, tensors))
    assert re.search(message, error), error
    assert error.startswith(str(tmp_path))


def test_untied_by_its_config_and_without_wte(tmp_path):
    tensors = without(LINEAR, "wte.weight") | {"lm_head.weight": WEIGHTS["wte.weight"]}
    assert_same_bits(nanopatch.load(save(tmp_path, tensors)), MODEL)
    assert "lacks wte.weight" in error_of(save(tmp_path, tensors, tie_word_embeddings=False))


def test_without_wpe_nothing_tells_the_positions(tmp_path):
    save(tmp_path, without(LINEAR, "wpe.weight"))
    (tmp_path / "config.json").unlink()
    message = "no tensor tells n_positions: wpe.weight is missing, or has not two axes"
    assert error_of(tmp_path) == f"{tmp_path}: {message}"


def test_what_the_tensors_cannot_tell_is_asked_for(tmp_path):
    save(tmp_path, LINEAR)
    (tmp_path / "config.json").unlink()
    assert "which GELU" in error_of(tmp_path) and error_of(tmp_path).endswith("; n_head is needed, too")
    assert "which GELU" in error_of(tmp_path, n_head=2) and "needed, too" not in error_of(tmp_path, n_head=2)
    assert "how many heads" in error_of(tmp_path, activation_function="gelu_new")
    assert_same_bits(nanopatch.load(tmp_path, n_head=2, activation_function="gelu_new"), MODEL)
    assert "multiple of n_head" in error_of(tmp_path, n_head=5, activation_function="gelu_new")


@pytest.mark.parametrize("sizes", [{"n_head": 3}, {"n_layer": 2}, {"block_size": 11}])
def test_sizes_that_contradict_each_other(tmp_path, sizes):
    write_config(tmp_path, MODEL.config)
    tensors = {name: writers.tensor(array) for name, array in LINEAR.items()}
    (tmp_path / "a.pt").write_bytes(writers.torch_zip({"model": tensors, "model_args": sizes}))
    (name, value), *_ = sizes.items()
    name = {"block_size": "n_positions"}.get(name, name)
    assert re.search(rf"config\.json says {name} \d+, and the weights say {value}: which\?", error_of(tmp_path))


def test_heads_that_contradict_their_weights(tmp_path):
    assert "says n_head 3, and the weights say 2" in error_of(save(tmp_path, LENS, n_head=3))


def test_a_header_of_llm_c_that_contradicts_the_config(tmp_path):
    model = tiny_model(n_inner=48)
    (tmp_path / "a.bin").write_bytes(writers.llmc(named_weights(model), 2))
    write_config(tmp_path, model.config, n_head=4)
    assert "says n_head 4, and the weights say 2" in error_of(tmp_path)
    write_config(tmp_path, model.config, activation_function="gelu_pytorch_tanh")  # another name of the same
    assert nanopatch.load(tmp_path).config == model.config


@pytest.mark.parametrize("wrong", [{"n_head": 3}, {"activation_function": "gelu"}])
def test_arguments_that_contradict_the_files(tmp_path, wrong):
    save(tmp_path, LINEAR)
    model = nanopatch.load(tmp_path, n_head=2, activation_function="gelu_fast")
    assert_same_bits(model, MODEL)
    (name, value), *_ = wrong.items()
    assert error_of(tmp_path, **wrong) == (
        f"{tmp_path} says {name} {getattr(model.config, name)!r}, and the argument {value!r}: leave out the argument, "
        "or change config.json"
    )


# ---- configs --------------------------------------------------------------------------------------


SHAPES = {name: array.shape for name, array in WEIGHTS.items()}
NANO_GPT = dict(n_layer=3, n_head=2, n_embd=12, block_size=12, bias=False, vocab_size=29, dropout=0.0)
MINGPT = {
    "system": {"seed": 3407},
    "model": {"model_type": None, "n_layer": 3, "n_head": 2, "n_embd": 12, "vocab_size": None, "block_size": None},
    "trainer": {"device": "auto"},
}


def test_the_config_of_other_programs():
    def config(terms):
        return read_config(published_terms(terms, "config.json"), SHAPES, "config.json")

    assert config(MINGPT) == config(MINGPT["model"]) == tiny_config(tie_word_embeddings=False)
    assert config({**MINGPT["model"], "activation_function": "gelu"}).activation_function == "gelu"
    with pytest.raises(NanopatchError, match="which GELU"):
        config(NANO_GPT)
    assert config(NANO_GPT | {"activation_function": "gelu"}) == tiny_config(activation_function="gelu")
    nano = published_terms({"model": {"model_type": "gpt-nano", "vocab_size": 3, "block_size": 11}}, "config.json")
    assert (nano["n_layer"], nano["n_head"], nano["n_embd"], nano["n_positions"]) == (3, 3, 48, 11)


@pytest.mark.parametrize(
    "name, same",
    [("gelu_pytorch_tanh", "gelu_new"), ("gelu_fast", "gelu_new"), ("gelu_python", "gelu"), ("relu", "relu")],
)
def test_other_names_of_activations(name, same):
    terms = published_terms({"model_type": "gpt2", **vars(tiny_config(activation_function=name))}, "config.json")
    assert read_config(terms, SHAPES, "config.json").activation_function == same


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "gpt-pico", "block_size": 11}, "model_type is 'gpt-pico'; minGPT has openai-gpt, gpt2"),
        ({"model_type": ["gpt2"]}, r"model_type must be a text, not \['gpt2'\]"),
        ({"model_type": {}}, "model_type must be a text"),
        ({"block_size": 11, "n_positions": 12}, "both block_size and n_positions, and they differ"),
        ({"block_size": "11"}, "n_positions must be a positive whole number"),
        ({"activation_function": "swish"}, "activation_function is 'swish'; it must be one of"),
    ],
)
def test_a_config_of_no_known_program(changes, message):
    with pytest.raises(NanopatchError, match=message):
        read_config(published_terms(NANO_GPT | {"activation_function": "gelu"} | changes, "config.json"), SHAPES, "x")
