"""timm networks by name, from a folder, or from the Hugging Face hub."""

from pathlib import Path
from typing import Any

from torch import nn

from pcam_lightning.utils.errors import UserError

TIMM = "timm/"  # prefix of timm networks
HUB = "hf-hub:"  # second prefix of a model on the Hugging Face hub
FOLDER = "local-dir:"  # second prefix of a folder with the files of such a model


def build_timm(name: str, side: int, **options: Any) -> tuple[Any, str]:
    """Return a timm network and the name of its last layer.

    Args:
        name: timm/NAME, timm/hf-hub:OWNER/NAME, or timm/local-dir:PATH of a folder with config.json.
        side: image side in pixels.
        options: options of timm.create_model; if any are given, original errors are raised.

    Raises:
        UserError: the network does not exist or cannot be built.
    """
    import timm  # takes half a second; not needed for torchvision networks

    plain = name.removeprefix(TIMM)
    if not plain.startswith((HUB, FOLDER)) and not timm.is_model(plain):
        raise UserError(f"`model.backbone` {name}: unknown to timm; timm.list_models() lists all names.")
    if plain.startswith(HUB):
        _check_hub(name, plain.removeprefix(HUB))
    network: Any
    try:
        try:
            network = timm.create_model(plain, num_classes=1, img_size=side, **options)
        except TypeError:  # most networks accept images of any size and have no such option
            network = timm.create_model(plain, num_classes=1, **options)
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if options:
            raise
        how = next(
            (text for prefix, text in _SOURCES.items() if plain.startswith(prefix)), f"for {side} x {side} pixels"
        )
        raise UserError(f"`model.backbone` {name}: cannot be built {how} ({first_line(error)}).") from None
    last = network.get_classifier()
    head = next((str(layer) for layer, module in network.named_modules() if module is last), "")
    if not isinstance(last, nn.Linear):
        raise UserError(f"`model.backbone` {name}: not supported, because the last layer is not linear.")
    return network, head


_SOURCES = {HUB: "from its repository", FOLDER: "from its folder"}


def _check_hub(name: str, repository: str) -> None:
    """Check with one request that the config.json of a repository is cached or readable.

    Raises:
        UserError: config.json cannot be read.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    owner_and_name, _, tag = repository.partition("@")
    file, revision = "config.json", tag or None
    try:
        if not isinstance(try_to_load_from_cache(owner_and_name, file, revision=revision), str):
            get_hf_file_metadata(hf_hub_url(owner_and_name, file, revision=revision), timeout=10)
    except Exception as error:  # the hub library raises many types
        raise UserError(
            f"`model.backbone` {name}: cannot be built from its repository ({first_line(error)}); {HOW_TO_ACCESS}."
        ) from None


HOW_TO_ACCESS = (
    "for gated repositories, request access on the page of the repository and set HF_TOKEN or run hf auth login"
)


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def absolute_name(name: str) -> str:
    """Return a network name with an absolute folder, so that it can be used from other working folders."""
    prefix = TIMM + FOLDER
    return f"{prefix}{Path(name.removeprefix(prefix)).expanduser().absolute()}" if name.startswith(prefix) else name


def stages_of_timm(network: Any) -> dict[str, int]:
    """Return the stages that a timm network lists, about four of the blocks of a transformer."""
    listed = [(info["module"], info["num_chs"]) for info in getattr(network, "feature_info", [])]
    # If a convolutional network has no layers after the last stage, its mean already forms the features.
    if listed and listed[-1][1] == network.num_features and not getattr(network, "num_prefix_tokens", 0):
        listed.pop()
    every = max(1, len(listed) // 4)
    return dict(listed[every - 1 :: every])
