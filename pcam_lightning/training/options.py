"""The options of a run, from YAML, Python or the command line, and the objects that they describe."""

import gc
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.timm_networks import absolute_name
from pcam_lightning.training.demo_run import NOT_REAL, is_synthetic, use_demo_data
from pcam_lightning.training.lightning_internals import RunParser
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.transforms.augment import augmentation_options
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.extensions import import_modules
from pcam_lightning.utils.system import expand_home, supported_precision

_KEYS = ("import", "seed_everything", "data", "model", "trainer")
_PATHS = ("root", "cache_dir", "split_file", "slides", "extra_train")
_TRAINER_DEFAULTS = {  # with those of the data and the network configs/base.yaml, so that each delta stands alone
    "devices": 1,
    "max_epochs": 15,
    "precision": "16-mixed",
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}

# Defaults of Lightning that are text and an Enum, such as the interval of Timer, are written into a config as text.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))


def add_run_arguments(parser: RunParser) -> None:
    """Add the options of a run to a parser: `import`, `seed_everything`, `data`, `model` and `trainer`."""
    help_text = "Modules of your own that add entries to tables: losses, layouts, metrics; docs/architecture.md."
    parser.add_argument("--import", type=list[str], default=[], help=help_text)
    parser.add_argument("--seed_everything", type=bool | int, default=42, help="Seed of all draws; true draws one.")
    parser.add_lightning_class_args(PCamDataModule, "data")
    parser.add_lightning_class_args(PCamClassifier, "model")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in _TRAINER_DEFAULTS.items()})


def run_parser() -> RunParser:
    """Return a parser of the options of a run alone."""
    return _run_parser(augmentation_options())


@cache
def _run_parser(augmentations: tuple[str, ...]) -> RunParser:
    """Build the parser anew where an augmentation has been added since."""
    parser = RunParser(exit_on_error=False)
    add_run_arguments(parser)
    return parser


class Config:
    """The options of a run.

    Args:
        parser: that checked the options, and builds what they describe.
        options: with `import`, `seed_everything`, `data`, `model` and `trainer`, the latter as the classes of these
            names explain them.
        name: of the folder in lightning_logs/ that runs of these options go to.
        resolved: whether `resolve` has been called, and has said what there is to say.
    """

    def __init__(self, parser: RunParser, options: Namespace, name: str = "default", *, resolved: bool = False) -> None:
        self.parser, self.options, self.name, self.resolved = parser, options, name, resolved

    @classmethod
    def load(cls, *files: Path | str, **changes: Mapping[str, Any] | int) -> "Config":
        """Read configs, the later ones over the earlier ones.

        Args:
            files: YAML files, such as configs/base.yaml; without any, the defaults count.
            changes: options that win over the files, such as `data={"root": "data"}`.

        Raises:
            UserError: a file cannot be read, or an option is unknown or of another type.
        """
        merged: dict[str, Any] = {}
        for path in map(Path, files):
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: cannot be read as a YAML file: {error}") from None
            merged = merge(merged, content or {})
        name = Path(files[-1]).stem if files else "default"
        return cls.of(merge(merged, changes), name)

    @classmethod
    def of(cls, plain: Mapping[str, Any], name: str = "default") -> "Config":
        """Check plain values, as YAML holds them.

        Raises:
            UserError: an option is unknown or of another type, or a module of `import` cannot be imported.
        """
        import_modules(plain.get("import", []))
        try:
            options = expand_home(run_parser().parse_object(dict(plain)))
        except ArgumentError as error:
            raise UserError(str(error)) from None
        check_seed(options.seed_everything)
        return cls(run_parser(), options, name)

    @classmethod
    def of_run(cls, loaded: LoadedRun, **changes: Mapping[str, Any] | int) -> "Config":
        """Return the options with which the network of a run is validated, tested or used for predictions.

        Args:
            loaded: the run.
            changes: options that win over those of the run.
        """
        return cls.of(merge(loaded.inference_config(), changes))

    def plain(self) -> dict[str, Any]:
        """Return the options as plain values, as config.yaml holds them."""
        dumped: dict[str, Any] = yaml.safe_load(self.parser.dump(self.options, skip_unset=False))
        return {name: dumped[name] for name in _KEYS}

    def replace(self, **changes: Mapping[str, Any] | int) -> "Config":
        """Return the same options with changes, such as `data={"fold": 1}`."""
        config = Config.of(merge(self.plain(), changes), self.name)
        config.resolved = self.resolved
        return config

    @property
    def runs(self) -> Path:
        """The folder of the runs of these options."""
        return Path(self.options.trainer.default_root_dir or ".") / "lightning_logs" / self.name

    def data_module(self, **changes: Any) -> PCamDataModule:
        """Build the data module alone; nothing is read yet.

        Args:
            changes: arguments that win over the options, such as `fold=1`.
        """
        return PCamDataModule(**{**self.plain()["data"], **changes})

    def build(self) -> tuple[PCamDataModule, PCamClassifier, Namespace]:
        """Build data module and network, and what the trainer's options name; the trainer's options are returned.

        Raises:
            UserError: a callback, a logger or the like cannot be built, or processes would lack what is imported.
        """
        modules, strategy = self.options["import"], self.options.trainer.strategy
        if modules and "spawn" in str(strategy):
            raise UserError(
                f"`trainer.strategy` {strategy}: its processes lack what `import` {', '.join(modules)} adds; use ddp."
            )
        # Network, optimizer and trainer of an earlier run in this process refer to each other.
        gc.collect()
        failed: list[UserError] = []  # jsonargparse may leave out why a class of a union cannot be built

        def construct(class_type: type, *args: Any, **kwargs: Any) -> Any:
            try:
                return class_type(*args, **kwargs)
            except UserError as error:  # jsonargparse would take it for one of several types that do not fit
                failed.append(error)
                raise
            except (ImportError, MisconfigurationException, KeyError, RuntimeError, TypeError, ValueError) as error:
                if class_type not in (PCamClassifier, PCamDataModule):
                    failed.append(UserError(f"`trainer`: {class_type.__name__} cannot be built: {error}"))
                raise

        try:
            built = self.parser.instantiate(self.options, instantiators=[(construct, object, True)])
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            if not failed:
                raise
            raise failed[0] from error
        return built.data, built.model, built.trainer

    def resolve(self, checkpoint: dict[str, Any] | None = None, *, trains: bool = True, what: str = "fit") -> None:
        """Resolve what depends on the machine and its files: data folder, slides, paths, precision.

        Args:
            checkpoint: what `read_checkpoint` returns, of the run that these options are of.
            trains: whether a network is trained.
            what: the name of a demo run, where there are no data.
        """
        announced, self.resolved = self.resolved, True
        data, trainer = self.options.data, self.options.trainer
        if data.root is None and checkpoint is not None:  # a null in the user's config names no other folder
            data.root = Path(checkpoint["pcam"]["data"]["root"])
        no_data = data.root is None and not Path("data").is_dir()
        if no_data:
            use_demo_data(data, f"{self.name}.yaml" if self.name != "default" else what, trains=trains)
        data.root = Path(data.root or "data")
        for name in _PATHS:  # the run is to find them again from another folder
            if data[name] is not None:
                data[name] = Path(data[name]).absolute()
        self.options.model.backbone = absolute_name(self.options.model.backbone)
        if is_synthetic(data.root) and not no_data and not announced:
            rank_zero_info(f"SYNTHETIC TISSUE: {data.root}. {NOT_REAL}")
        if checkpoint is not None:
            _follow_slides(data, checkpoint["pcam"]["config"]["data"])
        trainer.precision = supported_precision(trainer.accelerator, trainer.precision)

    def record_groups(self, data: PCamDataModule) -> None:
        """Record which groups a data module holds out whole once it is set up: slides for folds, where known."""
        self.options.data.slides, self.options.data.holdout = data.slides, data.holdout


def _follow_slides(data: Namespace, recorded: dict[str, Any]) -> None:
    """Look for a run's map of slides in the folder that its data have moved to, where it lay in the old one."""
    if data.slides is None:
        return
    if str(data.slides) == recorded.get("slides") and data.slides.parent == Path(recorded["root"]):
        data.slides = data.root / data.slides.name


def check_seed(seed: Any) -> None:
    """Check the range of a seed.

    Raises:
        UserError: it is not from 0 to 2^32 - 1.
    """
    if not isinstance(seed, bool) and not 0 <= seed < 2**32:
        raise UserError(f"`seed_everything` {seed}: should be from 0 to 4294967295.")


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it: mappings are merged, all else is replaced.

    The arguments of a class that `class_path` names are merged where the class stays the same.
    """
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        same = isinstance(below, Mapping) and isinstance(value, Mapping)
        if same and value.get("class_path", below.get("class_path")) == below.get("class_path"):  # type: ignore[union-attr]
            merged[name] = merge(below, value)  # type: ignore[arg-type]
        else:
            merged[name] = value
    return merged
