"""Checkpoints: every number format and layout that loads, and every way in which one may be broken.

The tiny checkpoint here: L = 2 layers, H = 2 heads, d_model 8, d_mlp 12, 7 positions, 11 tokens.
"""

import copy
import hashlib
import json
import os
import pathlib
import pickle
import re
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from writers import tensor, torch_zip

import nanopatch
from nanopatch import NanopatchError
from nanopatch.model import checkpoint as checkpoint_module
from nanopatch.model import stored as stored_module
from nanopatch.model.checkpoint import tensor_shapes
from nanopatch.model.config import published_terms, read_config

CONFIG = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 8,
    "n_inner": 12,
    "n_positions": 7,
    "vocab_size": 11,
}
FORMAT_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "uint8": "U8", "bool": "BOOL", "int64": "I64"}


def random_tensors(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "wte.weight": (11, 8),
        "wpe.weight": (7, 8),
        "ln_f.weight": (8,),
        "ln_f.bias": (8,),
    }
    for i in range(2):
        shapes |= {
            f"h.{i}.ln_1.weight": (8,),
            f"h.{i}.ln_1.bias": (8,),
            f"h.{i}.attn.c_attn.weight": (8, 24),
            f"h.{i}.attn.c_attn.bias": (24,),
            f"h.{i}.attn.c_proj.weight": (8, 8),
            f"h.{i}.attn.c_proj.bias": (8,),
            f"h.{i}.ln_2.weight": (8,),
            f"h.{i}.ln_2.bias": (8,),
            f"h.{i}.mlp.c_fc.weight": (8, 12),
            f"h.{i}.mlp.c_fc.bias": (12,),
            f"h.{i}.mlp.c_proj.weight": (12, 8),
            f"h.{i}.mlp.c_proj.bias": (8,),
        }
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def safetensors_bytes(tensors, formats=None, padding=0):
    """The file format, written out: the header's length in 8 bytes, the header (JSON), the numbers one after another.

    formats: {name: format} for what NumPy has no type for; padding: spaces after the header, which move the numbers.
    """
    header, start = {}, 0
    for name, array in tensors.items():
        number_format = (formats or {}).get(name) or FORMAT_NAMES[array.dtype.name]
        header[name] = {
            "dtype": number_format,
            "shape": list(array.shape),
            "data_offsets": [start, start := start + array.nbytes],
        }
    text = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in tensors.values())


def save(folder, tensors, config=CONFIG, **options):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, **options))
    return folder


def weights_of(model):
    """{checkpoint key: array} of a model, without lm_head."""
    weights = {"wte.weight": model.wte, "wpe.weight": model.wpe}
    pairs = {"ln_f": model.ln_f}
    for i, block in enumerate(model.h):
        pairs |= {f"h.{i}.ln_1": block.ln_1, f"h.{i}.ln_2": block.ln_2}
        pairs |= {f"h.{i}.attn.c_attn": block.attn.c_attn, f"h.{i}.attn.c_proj": block.attn.c_proj}
        pairs |= {f"h.{i}.mlp.c_fc": block.mlp.c_fc, f"h.{i}.mlp.c_proj": block.mlp.c_proj}
    for name, pair in pairs.items():
        weights |= {f"{name}.weight": pair.weight, f"{name}.bias": pair.bias}
    return weights


def assert_weights(model, tensors, dtype=np.float32):
    """The model holds exactly these tensors, converted to `dtype`, as arrays that matrix products can use directly."""
    weights = weights_of(model)
    assert weights.keys() == tensors.keys()
    assert model.dtype == dtype
    for name, array in weights.items():
        assert array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned, name
        np.testing.assert_array_equal(array, tensors[name].astype(dtype), err_msg=name, strict=True)


def error_of(*args, **options):
    with pytest.raises(NanopatchError) as caught:
        nanopatch.load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what loads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16])
def test_float64_float32_and_float16_files(tmp_path, stored, dtype):
    from safetensors.numpy import save_file

    tensors = random_tensors(stored)
    save_file(tensors, save(tmp_path, tensors) / "model.safetensors")  # by the format's own library
    model = nanopatch.load(tmp_path, dtype=dtype)
    assert_weights(model, tensors, dtype)
    assert model.lm_head is model.wte
    assert model.config == nanopatch.Config(n_layer=2, n_head=2, n_embd=8, n_positions=7, vocab_size=11, n_inner=12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bfloat16_is_widened_bit_by_bit(tmp_path, dtype):
    # A bfloat16 is the upper 16 bits of a float32: sign, 8 bits of exponent, 7 of fraction. Known ones first.
    known = {0x3F80: 1.0, 0xBF80: -1.0, 0x4049: 3.140625, 0x0000: 0.0, 0x7F7F: 3.3895313892515355e38, 0x0001: 2.0**-133}
    rng = np.random.default_rng(0)
    bits = {name: rng.integers(0, 0x7F80, array.shape).astype(np.uint16) for name, array in random_tensors().items()}
    bits["ln_f.weight"][: len(known)] = list(known)
    save(tmp_path, bits, formats=dict.fromkeys(bits, "BF16"))
    model = nanopatch.load(tmp_path, dtype=dtype)
    assert model.ln_f.weight[: len(known)].tolist() == list(known.values())
    for name, array in weights_of(model).items():
        assert array.dtype == dtype and array.flags.aligned
        as_float32 = array.astype(np.float32)
        np.testing.assert_array_equal(as_float32.view(np.uint32), bits[name].astype(np.uint32) << 16, err_msg=name)
        np.testing.assert_array_equal(as_float32.astype(dtype), array)


def test_formats_may_be_mixed(tmp_path):
    tensors = random_tensors()
    tensors["wpe.weight"] = tensors["wpe.weight"].astype(np.float16)
    tensors["ln_f.bias"] = tensors["ln_f.bias"].astype(np.float64)
    assert_weights(nanopatch.load(save(tmp_path, tensors)), tensors)


def torch_bytes(tensors):
    return torch_zip({name: tensor(array) for name, array in tensors.items()})


@pytest.mark.parametrize(
    "whole, content", [("model.safetensors", safetensors_bytes), ("pytorch_model.bin", torch_bytes)]
)
def test_shards(tmp_path, whole, content):
    tensors = random_tensors()
    save(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    halves = [dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:])]
    names = [whole.replace(".", f"-0000{i}-of-00002.") for i in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        (tmp_path / name).write_bytes(content(half))
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = tmp_path / f"{whole}.index.json"
    no_index = f"{tmp_path} has a part of the weights ({names[0]}) and no {index.name}: fetch it"
    assert error_of(tmp_path) == no_index
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))

    model = nanopatch.load(tmp_path)
    assert_weights(model, tensors)
    assert model.source.files == tuple(tmp_path / name for name in names)

    (tmp_path / names[1]).unlink()
    assert error_of(tmp_path) == (f"{tmp_path} lacks {names[1]}, which {index.name} lists: fetch all files")
    for broken in ("", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3, "b": "c"}}'):
        index.write_text(broken)
        assert error_of(tmp_path).startswith(f"cannot read {index}: ")
    kind = whole.split(".")[1]
    for outside in (f"../model.{kind}", "/etc/passwd", f"a/b.{kind}", "model.pt", 3):
        index.write_text(json.dumps({"weight_map": {"wte.weight": outside}}))
        assert error_of(tmp_path) == f"{index} names {outside!r}, which is not a {kind} file beside it"
    index.write_text('{"weight_map": {}}')
    assert error_of(tmp_path) == f"{index} names no files"


def test_the_prefix_transformer_may_be_there(tmp_path):
    tensors = random_tensors()
    prefixed = {f"transformer.{name}": array for name, array in tensors.items()}
    prefixed["lm_head.weight"] = prefixed["transformer.wte.weight"]
    model = nanopatch.load(save(tmp_path, prefixed))
    assert_weights(model, tensors)
    assert model.lm_head is model.wte

    both = prefixed | {"wte.weight": tensors["wte.weight"]}
    assert "two tensors 'wte.weight', with and without a prefix" in error_of(save(tmp_path, both))


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, np.float16])
def test_mask_buffers_are_ignored(tmp_path, dtype, prefix):
    tensors = random_tensors()
    given = {prefix + name: array for name, array in tensors.items()}
    for i in range(2):
        given[f"{prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 7, 7), dtype))
        given[f"{prefix}h.{i}.attn.masked_bias"] = np.array(-1e4).astype(dtype)
    assert_weights(nanopatch.load(save(tmp_path, given)), tensors)


def test_a_tied_lm_head_is_wte_itself_and_a_separate_one_is_used(tmp_path):
    tensors = random_tensors()
    tied = nanopatch.load(save(tmp_path / "tied", tensors | {"lm_head.weight": tensors["wte.weight"]}))
    assert tied.lm_head is tied.wte

    separate = random_tensors(seed=1)["wte.weight"]
    model = nanopatch.load(save(tmp_path / "separate", tensors | {"lm_head.weight": separate}))
    assert_weights(model, tensors)
    np.testing.assert_array_equal(model.lm_head, separate, strict=True)
    run = model.run([1, 2, 3])
    np.testing.assert_array_equal(run.logits, run.ln_final @ separate.T)
    np.testing.assert_array_equal(run.resid_pre, tied.run([1, 2, 3]).resid_pre)


def test_text_is_read_only_where_the_vocabulary_is_known(tmp_path):
    small = save(tmp_path / "small", random_tensors())
    assert nanopatch.load(small).reads_text is False

    tensors = random_tensors() | {"wte.weight": np.ones((50257, 8), np.float32)}
    folder = save(tmp_path / "large", tensors, CONFIG | {"vocab_size": 50257})
    assert nanopatch.load(folder).reads_text is False  # nothing says that it is
    assert nanopatch.load(folder, vocabulary="gpt2").tokenize("Hello").tolist() == [15496]
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 50257, "vocabulary": "gpt2"}))
    assert nanopatch.load(folder).reads_text is True
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 50257}))
    (folder / "vocab.json").write_text(json.dumps({str(number): number for number in range(50257)}))
    assert nanopatch.load(folder).reads_text is False


# ---- what is in memory ----------------------------------------------------------------------------


def mapped_file(array):
    """The np.memmap that an array is a view of, or None."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array


def aligned(tensors):
    """The padding after the header that puts float32 numbers at a multiple of 8 bytes."""
    return -(len(safetensors_bytes(tensors)) - sum(array.nbytes for array in tensors.values())) % 8


def save_as_cached(folder, tensors):
    """As the Hugging Face cache keeps a checkpoint: the names in a snapshot are links to files in `blobs`."""
    save(folder / "blobs", tensors, padding=aligned(tensors))
    snapshot = folder / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(folder / "blobs" / name)
    return snapshot


def test_a_float32_file_of_the_cache_is_mapped_and_never_written_to(tmp_path):
    tensors = random_tensors()
    folder = save_as_cached(tmp_path, tensors)
    before = (folder / "model.safetensors").read_bytes()
    model = nanopatch.load(folder)
    for name, array in weights_of(model).items():
        mapped = mapped_file(array)
        assert mapped is not None and np.shares_memory(array, mapped), name
        array[...] = 7
    model.run([1, 2])
    del model, array, mapped
    assert (folder / "model.safetensors").read_bytes() == before
    assert_weights(nanopatch.load(folder), tensors)
    assert_weights(nanopatch.load(folder, np.float64), tensors, np.float64)


@pytest.mark.parametrize("change", ["written over", "cut off", "removed", "replaced"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16])
def test_a_loaded_model_does_not_change_with_its_file(tmp_path, stored, dtype, change, monkeypatch):
    """And a result has the hash of the weights that computed it, or None, which says that it is unknown."""
    monkeypatch.setattr(nanopatch.files, "TICK", 10**12)  # on a slow machine too the file is new when it is read
    tensors, other = random_tensors(stored), safetensors_bytes(random_tensors(stored, seed=1))
    path = save(tmp_path / "model", tensors, padding=aligned(tensors)) / "model.safetensors"
    kept, before = nanopatch.load(path.parent, dtype), path.read_bytes()
    known, logits = kept.source.sha256, kept.run([1, 2, 3]).logits
    assert known == hashlib.sha256(before).hexdigest()

    model = nanopatch.load(path.parent, dtype)
    os.utime(path, ns=(0, 0))  # long ago, as most files
    old = nanopatch.load(path.parent, dtype)
    if change == "written over":
        path.write_bytes(other)
    elif change == "cut off":
        os.truncate(path, 100)
    elif change == "removed":
        path.unlink()
    else:
        (tmp_path / "new").write_bytes(other)
        os.replace(tmp_path / "new", path)
    for same in (kept, model, old):
        assert_weights(same, tensors, dtype)
        np.testing.assert_array_equal(same.run([1, 2, 3]).logits, logits)
    assert kept.source.sha256 == known
    assert model.source.sha256 == known  # the file was new when it was read, so it was hashed at once
    assert old.source.sha256 is None

    result = nanopatch.sweep(old, nanopatch.Experiment([1, 2], [1, 3], 3, 7))
    for ending in ("npz", "json"):
        result.save(tmp_path / f"x.{ending}")
        assert nanopatch.Sweep.load(tmp_path / f"x.{ending}").source.to_dict() == {
            "name": str(path.parent),
            "sha256": None,
        }


def test_a_file_that_changes_while_it_is_hashed_or_read(tmp_path, monkeypatch):
    tensors = random_tensors()
    path = save(tmp_path, tensors) / "model.safetensors"
    os.utime(path, ns=(0, 0))
    model, hash_of = nanopatch.load(tmp_path), nanopatch.files.sha256

    def changes(*paths):
        found = hash_of(*paths)
        path.write_bytes(safetensors_bytes(random_tensors(seed=1)))
        return found

    monkeypatch.setattr(nanopatch.files, "sha256", changes)
    assert model.source.sha256 is None

    def build(*args, **options):
        os.utime(path, ns=(0, 0))
        return build_of(*args, **options)

    build_of = checkpoint_module.build
    monkeypatch.setattr(checkpoint_module, "build", build)
    assert error_of(tmp_path) == f"{tmp_path}: the files changed while they were read: load it again"


@pytest.mark.parametrize("number_format", ["F16", "BF16"])
def test_a_file_of_16_bits_takes_little_more_memory_than_the_model(tmp_path, number_format):
    """Of what NumPy allocates: the float64 weights, and less than a tenth more."""
    sizes = dict(n_embd=64, n_inner=256, n_positions=64, vocab_size=20_000, n_layer=2)
    config = CONFIG | sizes
    shapes = tensor_shapes(nanopatch.Config(**{k: v for k, v in config.items() if k != "model_type"}))
    bits = {name: np.ones(shape, np.float16) for name, shape in shapes.items() if name != "lm_head.weight"}
    save(tmp_path, bits, config, formats=dict.fromkeys(bits, number_format))
    nanopatch.load(tmp_path)  # imports
    tracemalloc.start()
    model = nanopatch.load(tmp_path, np.float64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.1 * sum(array.nbytes for array in weights_of(model).values()) + 8 * stored_module.CHUNK * 3


@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize("stored", [np.float32, np.float16, np.float64])
def test_numbers_may_start_anywhere(tmp_path, stored, padding):
    # The published gpt2 file's header is 14,283 bytes long, so its float32 numbers start at no multiple of 4.
    tensors = random_tensors(stored)
    save(tmp_path, tensors, padding=padding)
    assert_weights(nanopatch.load(tmp_path), tensors)


# ---- config.json ----------------------------------------------------------------------------------


def write_config(tmp_path, **changes):
    config = {name: value for name, value in (CONFIG | changes).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path / "config.json"


def config_of(**changes):
    given = {name: value for name, value in (CONFIG | changes).items() if value is not ...}
    return read_config(published_terms(given, "config.json"), {}, "config.json")


def test_a_config_is_read_with_published_defaults():
    config = config_of(model_type=..., n_inner=None, n_positions=..., n_ctx=5, dropout=0.1)
    assert config == nanopatch.Config(
        n_layer=2,
        n_head=2,
        n_embd=8,
        n_positions=5,
        vocab_size=11,
        n_inner=32,
        layer_norm_epsilon=1e-5,
        activation_function="gelu_new",
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
    )
    assert config_of(n_ctx=5).n_positions == 7


def test_every_switch_is_read():
    changes = dict(
        layer_norm_epsilon=0,
        activation_function="gelu",
        scale_attn_weights=False,
        scale_attn_by_inverse_layer_idx=True,
        add_cross_attention=False,
    )
    config = config_of(**changes)
    assert {name: getattr(config, name) for name in changes if name != "add_cross_attention"} == {
        name: value for name, value in changes.items() if name != "add_cross_attention"
    }
    assert isinstance(config.layer_norm_epsilon, float)


BAD_CONFIGS = {
    "another architecture": (dict(model_type="llama"), "model_type is 'llama'"),
    "no architecture": (dict(model_type=None), "model_type is None"),
    "cross-attention": (dict(add_cross_attention=True), "add_cross_attention is true"),
    "no switch": (dict(add_cross_attention="no"), "add_cross_attention must be true or false, not 'no'"),
    "another activation": (
        dict(activation_function="silu"),
        "activation_function is 'silu'; it must be one of gelu_new, gelu, relu",
    ),
    "no activation": (dict(activation_function=["gelu"]), "activation_function is ['gelu']"),
    "negative epsilon": (
        dict(layer_norm_epsilon=-1e-5),
        "layer_norm_epsilon must be a finite number of at least 0, not -1e-05",
    ),
    "infinite epsilon": (dict(layer_norm_epsilon=float("inf")), "layer_norm_epsilon must be a finite number"),
    "epsilon not a number": (dict(layer_norm_epsilon=float("nan")), "layer_norm_epsilon must be a finite number"),
    "epsilon too large": (dict(layer_norm_epsilon=10**400), "layer_norm_epsilon must be a finite number"),
    "epsilon as text": (
        dict(layer_norm_epsilon="1e-5"),
        "layer_norm_epsilon must be a finite number of at least 0, not '1e-5'",
    ),
    "epsilon as bool": (
        dict(layer_norm_epsilon=True),
        "layer_norm_epsilon must be a finite number of at least 0, not True",
    ),
    "epsilon null": (
        dict(layer_norm_epsilon=None),
        "layer_norm_epsilon must be a finite number of at least 0, not None",
    ),
    "scale as number": (dict(scale_attn_weights=1), "scale_attn_weights must be true or false, not 1"),
    "layer scale null": (
        dict(scale_attn_by_inverse_layer_idx=None),
        "scale_attn_by_inverse_layer_idx must be true or false, not None",
    ),
    "heads do not fit": (dict(n_head=3), "n_embd 8 must be a multiple of n_head 3"),
    "n_inner zero": (dict(n_inner=0), "n_inner must be a positive whole number, not 0"),
}
for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
    for value in (0, -2, 2.0, True, "2", [2]):
        BAD_CONFIGS[f"{key} {value!r}"] = ({key: value}, f"{key} must be a positive whole number, not {value!r}")


BAD_CONFIGS["no n_head"] = ({"n_head": ...}, "the weights do not say how many heads there are: give load(..., n_head=")
BAD_CONFIGS["null n_head"] = (
    {"n_head": None},
    "the weights do not say how many heads there are: give load(..., n_head=",
)


@pytest.mark.parametrize("key", ["n_layer", "n_embd", "n_positions", "vocab_size", "n_inner"])
def test_what_a_config_leaves_out_is_told_by_the_shapes(tmp_path, key):
    save(tmp_path, random_tensors())
    expected = nanopatch.load(tmp_path).config
    for change in (..., None):
        write_config(tmp_path, **{key: change})
        assert nanopatch.load(tmp_path).config == expected


def test_tensors_of_unknown_names_tell_no_sizes(tmp_path):
    save(tmp_path, {f"net_{i}": array for i, array in enumerate(random_tensors().values())})
    write_config(tmp_path, n_layer=...)
    message = "no tensor tells n_layer: names such as wte.weight and h.0.ln_1.weight are expected, not net_"
    assert error_of(tmp_path).startswith(f"{tmp_path / 'config.json'}: {message}")


def test_nothing_is_asked_of_what_is_no_gpt2(tmp_path):
    # makemore's bag of words has some of a GPT-2's names
    names = ("wte.weight", "wpe.weight", "context_block.mlp.c_fc.weight", "lm_head.weight")
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(dict.fromkeys(names, np.ones((8, 8)))))
    assert error_of(tmp_path) == (
        f"{tmp_path}: no tensor tells n_layer: names such as wte.weight and h.0.ln_1.weight are expected, not "
        "context_block.mlp.c_fc.weight"
    )


@pytest.mark.parametrize("changes, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_config_that_cannot_be_honoured_is_refused(tmp_path, changes, message):
    save(tmp_path, random_tensors())
    path = write_config(tmp_path, **changes)
    assert error_of(tmp_path).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff{}", b"GIF89a\n\n", b"[" * 100_000, b'{"n_layer": ' + b"9" * 5000 + b"}"]
)
def test_a_config_that_is_not_json(tmp_path, content):
    save(tmp_path, random_tensors())
    (tmp_path / "config.json").write_bytes(content)
    assert error_of(tmp_path).startswith(f"cannot read {tmp_path / 'config.json'}: ")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"gpt2"'])
def test_a_config_that_is_no_object(tmp_path, content):
    save(tmp_path, random_tensors())
    (tmp_path / "config.json").write_text(content)
    assert error_of(tmp_path) == f"{tmp_path / 'config.json'} does not hold a JSON object"


def test_a_config_that_is_missing_or_a_folder(tmp_path):
    save(tmp_path, random_tensors())
    (tmp_path / "config.json").unlink()
    assert error_of(tmp_path).startswith(f"{tmp_path}: the weights do not say which GELU they were trained with: give ")
    assert error_of(tmp_path, activation_function="gelu").startswith(
        f"{tmp_path}: the weights do not say how many heads"
    )
    assert nanopatch.load(tmp_path, activation_function="gelu_new", n_head=2).config == config_of(bos_token_id=50256)
    (tmp_path / "config.json").mkdir()
    assert error_of(tmp_path).startswith(f"cannot read {tmp_path / 'config.json'}: ")


@pytest.mark.parametrize("dtype", [np.float16, np.int32, "banana", ">f4", "complex64", None, 7, object, [("a", "f4")]])
def test_only_float32_and_float64_models(tmp_path, dtype):
    error = error_of(save(tmp_path, random_tensors()), dtype=dtype)
    assert error.startswith("dtype must be np.float32 or np.float64, not ")


# ---- broken weights -------------------------------------------------------------------------------


def test_a_folder_without_weights(tmp_path):
    write_config(tmp_path)
    no_weights = (
        f"{tmp_path} has no weights: model.safetensors is expected beside config.json, or a file of PyTorch or llm.c"
    )
    assert error_of(tmp_path) == no_weights
    for name in ("model.pt", "last.ckpt"):
        (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    assert error_of(tmp_path) == f"{tmp_path} has several files of weights (last.ckpt, model.pt): give the path of one"


WHOLE = safetensors_bytes(random_tensors())
N_HEADER = 8 + struct.unpack("<Q", WHOLE[:8])[0]
BAD_FILES = {
    "empty": b"",
    "length alone": WHOLE[:8],
    "length cut off": WHOLE[:5],
    "header cut off": WHOLE[:100],
    "numbers cut off": WHOLE[:-1],
    "half of it": WHOLE[: len(WHOLE) // 2],
    "one byte too many": WHOLE + b"\0",
    "zeros": bytes(1000),
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n",
    "garbage": bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8)),
    "header longer than the file": struct.pack("<Q", len(WHOLE)) + WHOLE[8:],
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + WHOLE[8:],
    "header of 2^64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + WHOLE[8:],
    "header of 99 GB": struct.pack("<Q", 99 * 10**9) + WHOLE[8:],
    "header not JSON": struct.pack("<Q", 16) + b"not JSON at all " + bytes(100),
    "header not an object": struct.pack("<Q", 8) + b"[1,2,3] " + bytes(100),
    "header nested deeply": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "header not UTF-8": struct.pack("<Q", 16) + b'{"\xff\xfe": 1, "a":2}'[:16],
    "entries of no tensor": struct.pack("<Q", 16) + b'{"wte.weight":7}',
    "pickle": b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_broken_file_is_named(tmp_path, content):
    path = save(tmp_path, random_tensors()) / "model.safetensors"
    path.write_bytes(content)
    message = error_of(tmp_path)
    if content.startswith(b"version https://git-lfs"):  # to fetch it again would fetch the same
        assert message == (f"{path} is not the file itself but a pointer of Git LFS: run `git lfs pull` in its folder")
    else:
        assert message.startswith(f"{path} is not a whole safetensors file (")
        assert message.endswith("): fetch it again")


@pytest.mark.parametrize("name", ["trained_tokens.json", "token_names.json"])
@pytest.mark.parametrize(
    "content", ["null", "3", "true", "{}", '"text"', "[[1], 2]", "[1.5]", "[true]", "[null]", "NaN"]
)
def test_a_list_of_tokens_that_is_none(tmp_path, name, content):
    (save(tmp_path, random_tensors()) / name).write_text(content)
    assert re.search(rf"{name} must be a list of (whole numbers|texts)", error_of(tmp_path))


def test_names_of_tokens_are_texts_and_files(tmp_path):
    n_vocab = len(random_tensors()["wte.weight"])
    path = save(tmp_path, random_tensors()) / "token_names.json"
    path.write_text(json.dumps(["\ud83d"] * n_vocab))  # half of a character could not be written into any file
    assert "must be a list of texts (UTF-8)" in error_of(tmp_path)
    path.write_text(json.dumps(["a"] * (n_vocab - 1)))
    assert f"must be a list of {n_vocab} texts" in error_of(tmp_path)
    path.unlink()
    path.mkdir()
    assert "token_names.json: it is not a regular file" in error_of(tmp_path)
    path.rmdir()
    path.write_text(json.dumps([f"<{i}>" for i in range(n_vocab)]))
    assert nanopatch.load(tmp_path).token_strings([0, 1]) == ["<0>", "<1>"]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_has_the_names_that_its_tokens_were_given(tmp_path, again):
    model = nanopatch.load(save(tmp_path, random_tensors()))
    assert again(model).token_names is None
    model.token_names = [f"<{i}>" for i in range(model.n_vocab)]
    model.trained_tokens = frozenset({1, 2})
    copied = again(model)
    assert copied.token_strings([0]) == ["<0>"] and copied.trained_tokens == {1, 2}


def without(name):
    tensors = random_tensors()
    del tensors[name]
    return tensors


def filled(name, value, dtype=np.float32):
    tensors = random_tensors()
    tensors[name] = tensors[name].astype(dtype)
    tensors[name].flat[-1] = value
    return tensors


ONES = np.ones((8, 8), np.float32)
BAD_TENSORS = {
    "one missing": (without("h.1.mlp.c_fc.bias"), "lacks h.1.mlp.c_fc.bias: not a whole GPT-2 of 2 layers"),
    "all missing": ({}, "holds 0 tensors: not a whole GPT-2 of 2 layers"),
    "most missing": (
        {"x": ONES, "y": ONES},
        "lacks wte.weight, wpe.weight, h.0.ln_1.weight and 25 more: not a whole GPT-2",
    ),
    "one too many": (
        random_tensors() | {"h.2.ln_1.bias": ONES[0]},
        "has 'h.2.ln_1.bias', unknown in a GPT-2 of 2 layers: check config.json",
    ),
    "a name over two lines": (
        random_tensors() | {"a\nb": ONES},
        r"has 'a\nb', unknown in a GPT-2 of 2 layers: check config.json",
    ),
    "cross-attention": (
        random_tensors() | {"h.0.crossattention.c_attn.weight": ONES, "h.0.ln_cross_attn.bias": ONES[0]},
        "has cross-attention ('h.0.crossattention.c_attn.weight', 'h.0.ln_cross_attn.bias'); nanopatch has none",
    ),
    "transposed": (
        random_tensors() | {"h.0.attn.c_attn.weight": np.ones((24, 8), np.float32)},
        "mixes two layouts: h.0.attn.c_attn.weight is stored (n_out, n_in), the other way round than",
    ),
    "flat": (
        random_tensors() | {"wpe.weight": np.ones(56, np.float32)},
        "wpe.weight has shape (56,); config.json expects (7, 8)",
    ),
    "head of another shape": (random_tensors() | {"lm_head.weight": ONES}, "lm_head.weight has shape (8, 8)"),
    "no numbers": (random_tensors() | {"ln_f.bias": np.ones(0, np.float32)}, "ln_f.bias has shape (0,)"),
    "whole numbers": (
        random_tensors() | {"ln_f.bias": np.ones(8, np.int64)},
        "ln_f.bias must be in one of the number formats F64, F32, F16, BF16",
    ),
    "NaN": (filled("wte.weight", np.nan), "wte.weight holds NaN or infinity"),
    "NaN in float16": (filled("wte.weight", np.nan, np.float16), "wte.weight holds NaN or infinity"),
    "infinity": (filled("h.1.ln_2.bias", np.inf), "h.1.ln_2.bias holds NaN or infinity"),
    "minus infinity": (filled("h.1.mlp.c_proj.weight", -np.inf), "h.1.mlp.c_proj.weight holds NaN or infinity"),
    "too large for float32": (filled("wte.weight", 1e300, np.float64), "wte.weight holds NaN or infinity (as float32)"),
}


@pytest.mark.parametrize("tensors, message", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_wrong_tensor_is_named(tmp_path, tensors, message):
    error = error_of(save(tmp_path, tensors))
    assert error.removeprefix(f"{tmp_path}: ").removeprefix(f"{tmp_path} ").startswith(message)
    assert error.startswith(str(tmp_path))


def test_a_header_that_names_a_tensor_twice(tmp_path):
    path = save(tmp_path, random_tensors()) / "model.safetensors"
    header = WHOLE[8:N_HEADER]
    entry = header[header.index(b'"ln_f.bias"') : header.index(b"}", header.index(b'"ln_f.bias"')) + 1]
    header = header[:-1] + b", " + entry + b"}"
    path.write_bytes(struct.pack("<Q", len(header)) + header + WHOLE[N_HEADER:])
    assert "twice" in error_of(tmp_path) or "duplicate" in error_of(tmp_path)


def test_a_config_or_an_index_that_names_a_key_twice(tmp_path):
    path = save(tmp_path, random_tensors()) / "config.json"
    path.write_text('{"n_layer": 3, ' + json.dumps(CONFIG)[1:])
    assert error_of(tmp_path) == f"cannot read {path}: the key 'n_layer' is there twice"


def test_a_tensor_in_two_shards(tmp_path):
    tensors = random_tensors()
    save(tmp_path, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(safetensors_bytes({"ln_f.bias": tensors["ln_f.bias"] + 1}))
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {"nothing": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert error_of(tmp_path) == (
        f"{tmp_path}: 'ln_f.bias' is in both a.safetensors and b.safetensors: keep one of the two"
    )


def test_a_shard_whose_name_no_file_can_have(tmp_path):
    save(tmp_path, random_tensors())
    (tmp_path / "model.safetensors").unlink()
    weight_map = {"wte.weight": "a" * 300 + ".safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert error_of(tmp_path).startswith(f"{tmp_path} lacks aaa") and len(error_of(tmp_path)) < 400


def test_a_header_of_very_many_tensors_is_not_read(tmp_path):
    path = save(tmp_path, random_tensors()) / "model.safetensors"
    path.write_bytes(safetensors_bytes({str(i): np.zeros(0, np.float32) for i in range(100_000)}))
    message = error_of(tmp_path)  # imports
    tracemalloc.start()
    assert error_of(tmp_path) == message
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "more than a GPT-2 needs" in message and peak < path.stat().st_size


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json"])
def test_a_named_pipe_is_not_waited_for(tmp_path, name):
    tensors = random_tensors() | {"wte.weight": np.ones((50257, 8), np.float32)}
    save(tmp_path, tensors, CONFIG | {"vocab_size": 50257})
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    what = "has no weights" if name == "model.safetensors" else f"{name}: it is not a regular file"
    assert what in error_of(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path):
    path = save(tmp_path, random_tensors()) / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_weights(nanopatch.load(tmp_path), random_tensors())


def test_a_folder_below_the_home_folder(tmp_path, monkeypatch):
    save(tmp_path / "mine", random_tensors())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert_weights(nanopatch.load("~/mine"), random_tensors())


def test_a_config_of_a_billion_layers_is_refused_at_once(tmp_path):
    save(tmp_path, random_tensors(), CONFIG | {"n_layer": 10**9})
    assert error_of(tmp_path) == f"{tmp_path} holds 28 tensors: not a whole GPT-2 of 1000000000 layers"


def test_large_but_finite_weights_load(tmp_path):
    tensors = random_tensors()
    tensors["wte.weight"][...] = 1e30  # their squares overflow
    tensors["ln_f.bias"][:2] = np.finfo(np.float32).max, np.finfo(np.float32).min
    assert_weights(nanopatch.load(save(tmp_path, tensors)), tensors)

    wide = random_tensors(np.float64)
    wide["wte.weight"][...] = 1e300
    assert_weights(nanopatch.load(save(tmp_path, wide), dtype=np.float64), wide, np.float64)


def test_the_docstring_lists_every_key_and_shape():
    config = nanopatch.Config(**{name: value for name, value in CONFIG.items() if name != "model_type"})
    shapes = tensor_shapes(config)
    assert shapes.pop("lm_head.weight") == (11, 8)
    assert shapes == {name: array.shape for name, array in random_tensors().items()}
    for name in [*shapes, "lm_head.weight"]:
        if not name.endswith("bias"):
            assert name.replace("h.0.", "h.{i}.").replace("h.1.", "h.{i}.") in nanopatch.load.__doc__


# ---- any damage at all ----------------------------------------------------------------------------


def load_or_refuse(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    try:
        model = nanopatch.load(folder)
    except NanopatchError as error:
        assert "\n" not in str(error)
    else:
        assert {name: array.shape for name, array in weights_of(model).items()} == {
            name: array.shape for name, array in random_tensors().items()
        }


fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@fuzz
@given(n_bytes=st.integers(0, len(WHOLE) - 1))
@example(n_bytes=N_HEADER)
@example(n_bytes=N_HEADER - 1)
def test_a_file_cut_off_anywhere_is_refused(tmp_path, n_bytes):
    path = save(tmp_path, {}) / "model.safetensors"
    path.write_bytes(WHOLE[:n_bytes])
    assert error_of(tmp_path).startswith(f"{path} is not a whole safetensors file (")


@settings(fuzz, max_examples=200)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, N_HEADER) | st.integers(0, len(WHOLE) - 1), st.integers(1, 255)),
        min_size=1,
        max_size=4,
    )
)
def test_flipped_bytes_load_as_the_same_shapes_or_are_refused(tmp_path, flips):
    save(tmp_path, {})
    content = bytearray(WHOLE)
    for position, flip in flips:
        content[position] ^= flip
    load_or_refuse(tmp_path, bytes(content))


@settings(fuzz, max_examples=200)
@given(
    position=st.integers(8, N_HEADER),
    n_removed=st.integers(0, 30),
    inserted=st.text(alphabet='{}[]",:\\nu0123456789-eE.abF', max_size=12).map(str.encode),
)
def test_an_edited_header_loads_as_the_same_shapes_or_is_refused(tmp_path, position, n_removed, inserted):
    save(tmp_path, {})
    header = WHOLE[8:N_HEADER]
    header = header[: position - 8] + inserted + header[position - 8 + n_removed :]
    load_or_refuse(tmp_path, struct.pack("<Q", len(header)) + header + WHOLE[N_HEADER:])


def test_a_pickled_model_is_loaded_again(tmp_path, monkeypatch):
    """By its name or folder, whatever the working directory; whole where its weights have been edited."""
    model = nanopatch.load("nano", np.float64)
    content = pickle.dumps(model)
    assert len(content) < 1000
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(content)
    assert again.dtype == np.float64 and np.array_equal(again.next_logits("Hello"), model.next_logits("Hello"))

    folder = pathlib.Path(model.source.files[0]).parent
    shutil.copytree(folder, tmp_path / "mine")
    mine = nanopatch.load("mine")
    content = pickle.dumps(mine)
    monkeypatch.chdir("/")
    assert len(content) < 1000 and np.array_equal(pickle.loads(content).wte, mine.wte)

    model.h[0].mlp.c_fc.weight[3, 3] += 1
    edited = pickle.loads(pickle.dumps(model))
    assert np.array_equal(edited.h[0].mlp.c_fc.weight, model.h[0].mlp.c_fc.weight)
    assert np.array_equal(edited.next_logits("Hello"), model.next_logits("Hello"))


def test_a_pickled_model_whose_files_changed(tmp_path):
    """Unpickling never silently gives other weights; a model whose files are gone is pickled whole."""
    tensors = random_tensors()
    path = save(tmp_path, tensors) / "model.safetensors"
    model = nanopatch.load(tmp_path)
    content, before = pickle.dumps(model), path.read_bytes()
    path.write_bytes(safetensors_bytes(random_tensors(seed=1)))
    with pytest.raises(
        NanopatchError, match=f"^the files of {tmp_path}/model.safetensors have changed since this model was pickled"
    ):
        pickle.loads(content)
    assert_weights(pickle.loads(pickle.dumps(model)), tensors)  # whole
    path.write_bytes(before)
    assert_weights(pickle.loads(content), tensors)  # another time stamp, but the same bytes
    path.unlink()
    assert_weights(pickle.loads(pickle.dumps(model)), tensors)


def test_a_pickled_model_whose_config_changed(tmp_path):
    model = nanopatch.load(save(tmp_path, random_tensors()))
    content, logits = pickle.dumps(model), model.run([1, 2]).logits
    write_config(tmp_path, activation_function="relu")
    with pytest.raises(
        NanopatchError, match=f"^the files of {tmp_path}/model.safetensors have changed since this model was pickled"
    ):
        pickle.loads(content)
    for remove in (lambda: None, (tmp_path / "config.json").unlink):
        remove()
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).run([1, 2]).logits, logits)
