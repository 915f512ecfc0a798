"""Where a checkpoint's folder is: shipped, in `weights/`, in the Hugging Face cache, or to be downloaded.

Looking in that cache, and downloading into it, is huggingface_hub's work (the extra `hub`), so a
checkpoint that another library fetched is found, and one fetched here is there for it.
"""

import errno
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from ..errors import NanopatchError
from ..files import sha256


class Published(NamedTuple):
    """A checkpoint on the Hugging Face hub, pinned: repository, commit, SHA-256 of model.safetensors where known."""

    repo: str
    revision: str
    sha256: str = None


PUBLISHED = {
    "gpt2": Published(
        "openai-community/gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": Published("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": Published("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": Published("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": Published(
        "distilbert/distilgpt2",
        "2290a62682d06624634c1f46a6ad5be0f47f38aa",
        "e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b",
    ),
}
NAMES = ("nano", *PUBLISHED)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # says which shard holds which tensor, where one file would be too large
VOCABULARIES = ("vocab.json", "tokenizer.json")  # either says whether the vocabulary is GPT-2's
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def find(name_or_path):
    """The folder of a checkpoint (a `Path`), downloaded first if it must be; `nanopatch.load` lists the names.

    Raises NanopatchError for a name that means nothing, a file in place of a folder, or a failed download.
    """
    if name_or_path == "nano":
        return weights_folder() / "nano"
    if name_or_path in PUBLISHED:
        folder = weights_folder() / name_or_path
        return folder if (folder / "config.json").is_file() else find_on_hub(name_or_path, PUBLISHED[name_or_path])
    path = os.path.expanduser(name_or_path)  # os.path's tests say no, where Path's may raise, to what no path can be
    if os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path):
        if Path(path).suffix in PICKLES:
            raise NanopatchError(
                f"{path} is a pickle, which can run any code when opened, so it is not read: save the model as "
                f"{WEIGHTS} and give its folder"
            )
        raise NanopatchError(f"{path} is a file: give the folder that holds config.json and {WEIGHTS}")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name_or_path):
        return find_on_hub(name_or_path, Published(name_or_path, "main"))
    raise NanopatchError(
        f"no model {name_or_path!r}: give {', '.join(NAMES)}, a repository as org/name, or a folder that exists"
    )


def weights_folder():
    """`weights/`: beside this file in an installed package, beside the package in a checkout."""
    inside = Path(__file__).parent.parent / "weights"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "weights"


def weight_files(folder):
    """The safetensors files of a checkpoint's folder, as a tuple of paths: one, or its shards.

    Raises NanopatchError where there are none, or not all of them.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if (folder / INDEX).is_file():
        files = tuple(folder / name for name in shard_names(folder / INDEX))
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise NanopatchError(
                f"{folder} lacks {', '.join(missing)}, which {INDEX} names: fetch the whole checkpoint"
            )
        return files
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise NanopatchError(
            f"{folder} has only {', '.join(pickles)}: a pickle can run any code when opened, so it is not read; "
            f"save the model as {WEIGHTS}"
        )
    raise NanopatchError(f"{folder} has no weights: {WEIGHTS} is expected beside config.json")


def shard_names(index):
    """The file names that a `model.safetensors.index.json` (its path) lists, sorted, each once."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NanopatchError(f"cannot read {index}: {error!r}") from None
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", str(name)):  # nor a path that leads out of the folder
            raise NanopatchError(f"{index} names {name!r}, which is not a safetensors file beside it")
    if not names:
        raise NanopatchError(f"{index} names no files")
    return names


def find_on_hub(name, published):
    """The folder of a hub checkpoint: from the cache if it is there whole, else downloaded into it.

    No request is made for a checkpoint in the cache. Raises NanopatchError as `download` does, and
    where huggingface_hub is not installed.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise NanopatchError(
            f'{name} is not here. To download it: pip install "nanopatch[hub]". Or put its config.json and '
            f"{WEIGHTS} into a folder, and give that folder instead of {name!r}"
        ) from None

    for repo in dict.fromkeys((published.repo, name)):  # the cache of one who loaded "gpt2" is under that name
        folder = cached_folder(repo, published.revision, needs_vocabulary=name not in PUBLISHED)
        if folder:
            return folder
    return download(name, published)


def cached_folder(repo, revision, needs_vocabulary):
    """The folder of a repository in the Hugging Face cache if all that a model needs is there, else None.

    needs_vocabulary: whether that takes a tokenizer file too, or knowing that the repository has none.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    def look_up(file):
        return try_to_load_from_cache(repo, file, revision=revision)  # a path; else None, or a mark that there is none

    try:
        config = look_up("config.json")
    except HFValidationError as error:
        raise NanopatchError(f"{repo!r} cannot be the name of a repository: {_first_line(error)}") from None
    if not isinstance(config, str):
        return None
    try:
        weight_files(Path(config).parent)
    except NanopatchError:
        return None
    if needs_vocabulary:
        found = [look_up(file) for file in VOCABULARIES]
        if None in found and not any(isinstance(path, str) for path in found):
            return None
    return Path(config).parent


def download(name, published):
    """Download a checkpoint into the Hugging Face cache and check it; returns its folder (a `Path`).

    name: what the user calls it; published: where it is. Fetches config.json, the weights, and, except
    for the models in `PUBLISHED`, the tokenizer file that says whether the vocabulary is GPT-2's. On a
    terminal a bar on stderr shows the progress. A file gets its name in the cache once it is whole.
    Raises NanopatchError where the repository cannot be reached or written to disk, is no GPT-2, has no
    safetensors, or where model.safetensors has another SHA-256 than the pinned one; it is deleted then.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(file, revision):
        """Path of a file in the cache, downloaded unless it is there; None if the repository has no such file."""
        try:
            return Path(hf_hub_download(published.repo, file, revision=revision))
        except LocalEntryNotFoundError:  # a lost connection: in huggingface_hub, a kind of the error below
            raise
        except EntryNotFoundError:
            return None

    revision = published.revision
    try:
        # One request first, which fails at once: without it, hf_hub_download repeats a hopeless one for half a minute.
        get_hf_file_metadata(hf_hub_url(published.repo, "config.json", revision=revision))
        if name not in PUBLISHED:
            config = fetch("config.json", revision)
            _refuse_other_models(name, config)
            revision = config.parent.name  # the commit, so that all files are of one even if somebody pushes meanwhile

        weights = fetch(WEIGHTS, revision)
        if weights is None:
            index = fetch(INDEX, revision)
            if index is None:
                raise NanopatchError(
                    f"{published.repo} has no {WEIGHTS}. Weights in another format (pytorch_model.bin is a pickle, "
                    f"which can run any code when opened) are not read: save the model as {WEIGHTS} and give its folder"
                )
            for shard in shard_names(index):
                if fetch(shard, revision) is None:
                    raise NanopatchError(f"{published.repo} lacks {shard}, which its {INDEX} names")
        elif published.sha256:
            _check_sha256(weights, published.sha256)

        if name not in PUBLISHED and fetch("vocab.json", revision) is None:
            fetch("tokenizer.json", revision)
        # Last, because a checkpoint without config.json does not count as whole: should the check of the hash be
        # interrupted, the next try does it again.
        return fetch("config.json", revision).parent
    except NanopatchError:
        raise
    except Exception as error:  # the network's errors are requests' or httpx's, as huggingface_hub's version has it
        raise NanopatchError(_what_to_do(name, published.repo, error)) from error


def _refuse_other_models(name, config):
    """NanopatchError for a config.json of some other architecture, before gigabytes of it arrive."""
    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type", "gpt2")
    except (ValueError, AttributeError, RecursionError):
        return  # whoever reads the whole config will say what is wrong with it
    if model_type != "gpt2":
        raise NanopatchError(f"{name} is a model of type {model_type!r}, not a GPT-2: its weights were not downloaded")


def _check_sha256(path, expected):
    """Delete a downloaded file, and raise, if its SHA-256 is not the expected one."""
    found = sha256(path)
    if found == expected:
        return
    while path.is_symlink():  # the name in the snapshot links to the file itself, perhaps by way of another link
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
    raise NanopatchError(
        f"the downloaded {WEIGHTS} has SHA-256 {found}, but {expected} is expected: it was deleted; try "
        "again, and if this comes back do not trust the place it comes from"
    )


def _what_to_do(name, repo, error):
    """One line for an error of huggingface_hub, the network or the disk."""
    from huggingface_hub import constants, utils

    hub = constants.ENDPOINT
    folder = f"put its config.json and {WEIGHTS} into a folder and give that folder"
    if isinstance(error, utils.OfflineModeIsEnabled):
        return f"{name} is not in the Hugging Face cache, and HF_HUB_OFFLINE forbids a download: unset it, or {folder}"
    if isinstance(error, utils.GatedRepoError):
        return f"{repo} is gated: ask for access at {hub}/{repo}, then set HF_TOKEN to your token and try again"
    if isinstance(error, utils.RepositoryNotFoundError):
        return (
            f"no model {name!r}: there is no such folder here and no such repository at {hub}; if it is a private one, "
            "set HF_TOKEN to your token"
        )
    if isinstance(error, utils.RevisionNotFoundError):
        return f"{repo} at {hub} no longer has the revision that is asked for: {folder}"
    if isinstance(error, utils.EntryNotFoundError) and not isinstance(error, utils.LocalEntryNotFoundError):
        return f"{repo} at {hub} has no config.json: it is not a checkpoint that can be loaded"
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or getattr(error, "filename", None):  # the disk's, not the network's
        return (
            f"cannot write {name} into {constants.HF_HUB_CACHE} ({os.strerror(number)}): make room there, or set "
            "HF_HUB_CACHE to a folder that has room and may be written to"
        )
    return f"cannot download {name} from {hub} ({_first_line(error)}): check the network and try again, or {folder}"


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
