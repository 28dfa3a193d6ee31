"""Networks of timm's: by name, from a folder, or from the Hugging Face hub."""

from pathlib import Path
from typing import Any

from torch import nn

from pcam_lightning.utils.errors import UserError

TIMM = "timm/"  # prefix of any network of timm's
HUB = "hf-hub:"  # prefix, after that, of a model on the Hugging Face hub
FOLDER = "local-dir:"  # or of a folder with the files of such a model


def build_timm(name: str, side: int, **options: Any) -> tuple[Any, str]:
    """Return one of timm's networks and the name of its last layer.

    Args:
        name: timm/ and one of timm's names, hf-hub:OWNER/NAME, or local-dir:PATH of a folder with config.json.
        side: of the images, in pixels.
        options: of timm.create_model; with any, errors are raised as they come.

    Raises:
        UserError: no such network, or it cannot be built.
    """
    import timm  # half a second, which networks of torchvision's do without

    plain = name.removeprefix(TIMM)
    if not plain.startswith((HUB, FOLDER)) and not timm.is_model(plain):
        raise UserError(f"`model.backbone` {name}: timm has no such network; timm.list_models() has their names.")
    if plain.startswith(HUB):
        _check_hub(name, plain.removeprefix(HUB))
    network: Any
    try:
        try:
            network = timm.create_model(plain, num_classes=1, img_size=side, **options)
        except TypeError:  # most networks take images of any size, and no such option
            network = timm.create_model(plain, num_classes=1, **options)
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if options:
            raise
        what = next((of for prefix, of in _SOURCES.items() if plain.startswith(prefix)), f"for {side} x {side} pixels")
        raise UserError(f"`model.backbone` {name}: cannot be built {what} ({first_line(error)}).") from None
    last = network.get_classifier()
    head = next((str(layer) for layer, module in network.named_modules() if module is last), "")
    if not isinstance(last, nn.Linear):
        raise UserError(f"`model.backbone` {name}: does not end in one linear layer, which the logit needs.")
    return network, head


_SOURCES = {HUB: "from its repository", FOLDER: "from its folder"}


def _check_hub(name: str, repository: str) -> None:
    """Check that a repository's config.json is in the cache or can be read: one request, which a download repeats.

    Raises:
        UserError: it cannot be.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    owner_and_name, _, tag = repository.partition("@")
    file, revision = "config.json", tag or None
    try:
        if not isinstance(try_to_load_from_cache(owner_and_name, file, revision=revision), str):
            get_hf_file_metadata(hf_hub_url(owner_and_name, file, revision=revision), timeout=10)
    except Exception as error:  # of whatever the library that asks raises
        raise UserError(
            f"`model.backbone` {name}: cannot be built from its repository ({first_line(error)}); {HOW_TO_ACCESS}."
        ) from None


HOW_TO_ACCESS = (
    "where access is restricted, ask for it on the page of the repository, and give this machine a token of yours "
    "(HF_TOKEN, or hf auth login)"
)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def absolute_name(name: str) -> str:
    """Return a network's name with the folder that it may name absolute, for use from elsewhere."""
    prefix = TIMM + FOLDER
    return f"{prefix}{Path(name.removeprefix(prefix)).expanduser().absolute()}" if name.startswith(prefix) else name


def stages_of_timm(network: Any) -> dict[str, int]:
    """Return the stages that one of timm's networks lists, about four of a transformer's many blocks."""
    listed = [(info["module"], info["num_chs"]) for info in getattr(network, "feature_info", [])]
    # Of networks of convolutions without layers in between, the features are the mean of the last stage already.
    if listed and listed[-1][1] == network.num_features and not getattr(network, "num_prefix_tokens", 0):
        listed.pop()
    every = max(1, len(listed) // 4)
    return dict(listed[every - 1 :: every])
