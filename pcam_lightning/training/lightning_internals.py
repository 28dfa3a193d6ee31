"""Everything private of Lightning and jsonargparse that this project uses, in one place.

Tested with lightning 2.6.6 and jsonargparse 4.53.0; tests/training/test_lightning_internals.py fails where a later
version has changed one of them.
"""

import operator
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from types import UnionType
from typing import Any, Union, get_args, get_origin

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import DDPStrategy

# Lightning's spawn and fork launchers hand weights to the process that called fit in a file of this name.
LAUNCHER_CHECKPOINT = ".temp.ckpt"


class RunParser(LightningArgumentParser):
    """Lightning's parser, in which an int stays an int.

    jsonargparse takes the first member of a union that accepts a value, and float accepts 1: as 1.0, which is all of
    the batches where 1 is one batch. The type of an option that has been added is `_typehint` of its action.
    """

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an argument; jsonargparse gives this method to groups too."""
        action = super().add_argument(*args, **kwargs)
        if hasattr(action, "_typehint"):
            action._typehint = int_before_float(action._typehint)
        return action


def int_before_float(annotation: Any) -> Any:
    """Return a type with int before float where it is a union of both."""
    members = list(get_args(annotation))
    if get_origin(annotation) not in (Union, UnionType) or int not in members or float not in members:
        return annotation
    members.remove(int)
    members.insert(members.index(float), int)
    return reduce(operator.or_, members)


def end_by_epochs(trainer: Trainer) -> None:
    """Let a resumed run end once.

    With `max_steps` Lightning takes a run that resumes at an epoch's end for one within that epoch, and ends it twice.
    """
    trainer.fit_loop._iteration_based_training = _false  # type: ignore[method-assign]


@contextmanager
def keyboard_interrupt() -> Iterator[None]:
    """Pass on the KeyboardInterrupt that stopped a stage of a trainer.

    Lightning raises SystemExit in its place, and lets the process ignore Ctrl-C from then on.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if main:
            signal.signal(signal.SIGINT, handler)
        raise stop.__context__ from None


def _false() -> bool:
    return False


def find_unused_parameters(trainer: Trainer) -> None:
    """Let DDP accept parameters without a gradient, such as those of a frozen backbone.

    The strategy is built by name, before the network is known, and passes on what it was built with.
    """
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)


def reads_at_epoch_end(callback: EarlyStopping, trainer: Trainer) -> bool:
    """Return when early stopping reads its metric: at the end of an epoch, or of a validation.

    It decides that itself in `setup`, where the user has not; this is its rule.
    """
    chosen = callback._check_on_train_epoch_end
    if chosen is None:
        return bool(trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1)
    return bool(chosen)
