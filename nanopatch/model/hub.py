"""Finds a checkpoint's folder: shipped, in `weights/`, in the Hugging Face cache, or downloaded.

huggingface_hub (the extra `hub`) looks in that cache and downloads into it. So nanopatch finds the checkpoints that
other libraries downloaded, and they find those that nanopatch downloaded.
"""

import errno
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from ..errors import NanopatchError
from ..files import read_json, sha256
from ..progress import in_notebook
from ..types import PathLike


class Published(NamedTuple):
    """A pinned checkpoint on the Hugging Face hub: repository, commit, and, if known, SHA-256 of model.safetensors."""

    repo: str
    revision: str
    sha256: str | None = None


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
#: The known hashes of the published checkpoints' weights.
SHA256 = frozenset(published.sha256 for published in PUBLISHED.values() if published.sha256)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # for weights in several files (shards): it says which file holds which tensor
#: The endings of other files of weights: PyTorch's, and llm.c's.
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")
PYTORCH = "pytorch_model.bin"  # what Hugging Face calls PyTorch's file
PYTORCH_INDEX = "pytorch_model.bin.index.json"
#: The files that can hold the vocabulary of a repository, the preferred one first.
VOCABULARIES = ("tokenizer.json", "vocab.json")

GIVE_A_FOLDER = f"put its config.json and {WEIGHTS} into a folder and give that folder"


def find(name_or_path: str) -> Path:
    """The folder of a checkpoint, downloaded first if necessary, or its file. `nanopatch.load` lists the names.

    Raises NanopatchError for an unknown name, or a failed download.
    """
    if name_or_path == "nano":
        return weights_folder() / "nano"
    if name_or_path in PUBLISHED:
        folder = weights_folder() / name_or_path
        return folder if (folder / "config.json").is_file() else find_on_hub(name_or_path, PUBLISHED[name_or_path])
    path = os.path.expanduser(name_or_path)  # os.path.isdir says no to an impossible path; Path.is_dir may raise
    if os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path):
        if not Path(path).name.endswith(OTHER_WEIGHTS):
            endings = ", ".join(OTHER_WEIGHTS)
            raise NanopatchError(f"{path}: a file of weights ends in {endings}: rename it, or give its folder")
        return Path(path)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name_or_path):
        return find_on_hub(name_or_path, Published(name_or_path, "main"))
    raise NanopatchError(
        f"no model {name_or_path!r}: give {', '.join(NAMES)}, a repository as org/name, or a folder that exists"
    )


def weights_folder() -> Path:
    """`weights/`: inside an installed package, beside the package in a checkout."""
    inside = Path(__file__).parent.parent / "weights"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "weights"


def is_cached(path: Path) -> bool:
    """Whether a file is one of the Hugging Face cache. There a file gets its name when complete, and never changes."""
    return path.resolve().parent.name == "blobs"


def weight_files(place: PathLike) -> tuple[Path, ...]:
    """The files of weights of a checkpoint's folder: one, or its shards; a file is its own.

    Raises NanopatchError if there are none, if a shard is missing, or if there are several and none has a known name.
    """
    folder = Path(place)
    if os.path.isfile(folder):
        return (folder,)
    # os.path.isfile says no to an impossible name and to a folder that cannot be read; Path.is_file may raise.
    for whole, index in ((WEIGHTS, INDEX), (PYTORCH, PYTORCH_INDEX)):
        if os.path.isfile(folder / whole):
            return (folder / whole,)
        if os.path.isfile(folder / index):
            files = tuple(folder / name for name in shard_names(folder / index))
            missing = [path.name for path in files if not os.path.isfile(path)]
            if missing:
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                names = ", ".join(f"{name:.100}" for name in missing[:3]) + more
                raise NanopatchError(f"{folder} lacks {names}, which {index} lists: fetch all files")
            return files
    others = sorted(path for path in folder.glob("*") if path.suffix in OTHER_WEIGHTS and path.is_file())
    if len(others) > 1:
        names = ", ".join(path.name for path in others[:5])
        for path in others:
            if match := re.fullmatch(r"(.+)-\d+-of-\d+(\.\w+)", path.name):
                index = f"{match[1]}{match[2]}.index.json"
                raise NanopatchError(
                    f"{folder} has a part of the weights ({path.name:.100}) and no {index:.100}: fetch it"
                )
        raise NanopatchError(f"{folder} has several files of weights ({names}): give the path of one")
    if others:
        return (others[0],)
    raise NanopatchError(
        f"{folder} has no weights: {WEIGHTS} is expected beside config.json, or a file of PyTorch or llm.c"
    )


def shard_names(index: Path) -> list[str]:
    """The file names that a `model.safetensors.index.json` or `pytorch_model.bin.index.json` lists, sorted, once."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise NanopatchError(f"cannot read {index}: {error!r}") from None
    kind = index.name.removesuffix(".index.json").rpartition(".")[2]
    for name in names:
        if not re.fullmatch(rf"[\w-][\w.-]*\.{kind}", str(name)):  # a path could lead out of the folder
            raise NanopatchError(f"{index} names {name!r:.100}, which is not a {kind} file beside it")
    if not names:
        raise NanopatchError(f"{index} names no files")
    return names


def find_on_hub(name: str, published: Published) -> Path:
    """The folder of a hub checkpoint: from the cache if it is complete there, else downloaded into it.

    No request is made for a checkpoint in the cache. Raises NanopatchError as `download` does, and if huggingface_hub
    is not installed.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise NanopatchError(
            f'{name} is not here: to download it, run pip install "nanopatch[hub]" first; or {GIVE_A_FOLDER}'
        ) from None

    for repo in dict.fromkeys((published.repo, name)):  # older versions cached "gpt2" under that name
        folder = cached_folder(repo, published.revision, needs_vocabulary=name not in PUBLISHED)
        if folder:
            return folder
    return download(name, published)


def cached_folder(repo: str, revision: str, needs_vocabulary: bool) -> Path | None:
    """The folder of a repository in the Hugging Face cache if it holds all that a model needs, else None.

    needs_vocabulary: whether it must also hold a tokenizer file, or the mark that the repository has none.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    def look_up(file: str) -> object:
        """The path in the cache (a str), a mark that the repository has no such file, or None if that is not known."""
        return try_to_load_from_cache(repo, file, revision=revision)

    try:
        config = look_up("config.json")
    except HFValidationError as error:
        raise NanopatchError(f"{repo!r} cannot be the name of a repository: {_first_line(error)}") from None
    if not isinstance(config, str):
        return None
    try:
        files = weight_files(Path(config).parent)
    except NanopatchError:
        return None
    if len(files) == 1 and files[0].name not in (WEIGHTS, PYTORCH):  # training_args.bin, say
        return None
    if needs_vocabulary:
        found = [look_up(file) for file in VOCABULARIES]
        if None in found and not any(isinstance(path, str) for path in found):
            return None
    return Path(config).parent


def download(name: str, published: Published) -> Path:
    """Download a checkpoint into the Hugging Face cache, check it, and return its folder.

    name: what the user calls it; published: where it is. Downloads config.json, the weights, and a tokenizer file,
    which says whether the vocabulary is GPT-2's (the models in `PUBLISHED` need none). On a terminal a bar on stderr
    shows the progress. In a notebook huggingface_hub shows none, so a line says what is downloaded. A file gets its
    name in the cache only when it is complete.

    Raises NanopatchError if the repository cannot be reached, is not a GPT-2 or has no safetensors, if the cache
    cannot be written, or if model.safetensors does not have the pinned SHA-256; then it is deleted.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    revision = published.revision

    def fetch(file: str) -> Path | None:
        """Path of a file in the cache, downloaded if it is not there. None if the repository has no such file."""
        try:
            return Path(hf_hub_download(published.repo, file, revision=revision))
        except LocalEntryNotFoundError:  # a lost connection: huggingface_hub makes it a subclass of the next error
            raise
        except EntryNotFoundError:
            return None

    try:
        # This request fails at once. hf_hub_download alone would repeat a hopeless request for half a minute.
        get_hf_file_metadata(hf_hub_url(published.repo, "config.json", revision=revision))
        if name not in PUBLISHED:
            config = Path(hf_hub_download(published.repo, "config.json", revision=revision))
            _refuse_other_models(name, config)
            revision = config.parent.name  # the commit: all files come from it, even if the repository changes now

        if in_notebook():
            print(f"downloading {name} from {constants.ENDPOINT}/{published.repo} ...", file=sys.stderr)
        weights = fetch(WEIGHTS)
        if weights is None:
            index = fetch(INDEX)
            if index is None and fetch(PYTORCH) is None:
                index = fetch(PYTORCH_INDEX)
                if index is None:
                    raise NanopatchError(f"{published.repo} has no {WEIGHTS} and no {PYTORCH}")
            if index is not None:
                for shard in shard_names(index):
                    if fetch(shard) is None:
                        listed = f"which its {index.name} lists"
                        raise NanopatchError(f"{published.repo} lacks {shard}, {listed}: it is incomplete")
        elif published.sha256:
            _check_sha256(weights, published.sha256)

        if name not in PUBLISHED:
            any(fetch(file) for file in VOCABULARIES)  # the first that the repository has
        # Last, because a checkpoint without config.json counts as incomplete. If the check of the hash is interrupted,
        # the next try repeats it.
        return Path(hf_hub_download(published.repo, "config.json", revision=revision)).parent
    except NanopatchError:
        raise
    except Exception as error:  # network errors come from requests or httpx: it depends on huggingface_hub's version
        raise NanopatchError(_what_to_do(name, published.repo, error)) from error


def _refuse_other_models(name: str, config: Path) -> None:
    """Raise NanopatchError for the config.json of another architecture, before its weights are downloaded."""
    try:
        model_type = read_json(config).get("model_type", "gpt2")
    except (NanopatchError, AttributeError):
        return  # `read_config` will say what is wrong with it
    if model_type != "gpt2":
        raise NanopatchError(f"{name} is a model of type {model_type!r}, not a GPT-2: its weights were not downloaded")


def _check_sha256(path: Path, expected: str) -> None:
    """Delete a downloaded file and raise NanopatchError if its SHA-256 is not the expected one."""
    found = sha256(path)
    if found == expected:
        return
    while path.is_symlink():  # the name in the snapshot links to the file, perhaps through another link
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
    raise NanopatchError(
        f"the downloaded {WEIGHTS} has SHA-256 {found}, but {expected} is expected: it was deleted; try again, and if "
        "this happens again, do not trust the site you download from"
    )


def _what_to_do(name: str, repo: str, error: Exception) -> str:
    """The message for an error of huggingface_hub, the network or the disk: one line."""
    from huggingface_hub import constants, utils

    hub = constants.ENDPOINT
    if isinstance(error, utils.OfflineModeIsEnabled):
        return f"{name} is not cached, and HF_HUB_OFFLINE forbids a download: unset HF_HUB_OFFLINE, or {GIVE_A_FOLDER}"
    if isinstance(error, utils.GatedRepoError):
        return f"{repo} is gated: ask for access at {hub}/{repo}, then set HF_TOKEN to your token and try again"
    if isinstance(error, utils.RepositoryNotFoundError):
        return f"no model {name!r}: neither a folder here nor a repository at {hub}; if it is private, set HF_TOKEN"
    if isinstance(error, utils.RevisionNotFoundError):
        return f"{repo} at {hub} does not have the revision that nanopatch needs: {GIVE_A_FOLDER}"
    if isinstance(error, utils.EntryNotFoundError) and not isinstance(error, utils.LocalEntryNotFoundError):
        return f"{repo} at {hub} has no config.json: it is not a checkpoint that can be loaded"
    number = getattr(error, "errno", 0)
    if number in (errno.ENOSPC, errno.EDQUOT) or getattr(error, "filename", None):  # the disk, not the network
        return (
            f"cannot write {name} into {constants.HF_HUB_CACHE} ({os.strerror(number)}): make room there, or set "
            "HF_HUB_CACHE to a writable folder that has room"
        )
    reason = _first_line(error)
    return f"cannot download {name} from {hub} ({reason}): check the network and try again, or {GIVE_A_FOLDER}"


def _first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
