"""What this project uses of Lightning's and jsonargparse's own parts is still there, and does what is needed."""

import inspect

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import multiprocessing

from pcam_lightning.training import lightning_internals as internals


def _trainer(**options: object) -> L.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(**{**defaults, **options})  # type: ignore[arg-type]


def test_an_option_of_a_parser_has_a_type_that_can_be_set() -> None:
    parser = internals.RunParser(exit_on_error=False)
    parser.add_argument("--value", type=float | int | None)
    assert type(parser.parse_args(["--value=1"]).value) is int
    assert type(parser.parse_args(["--value=1.0"]).value) is float


def test_a_fit_loop_asks_whether_training_goes_by_iterations() -> None:
    trainer = _trainer(max_steps=5)
    assert callable(trainer.fit_loop._iteration_based_training)
    assert trainer.fit_loop._iteration_based_training() is True
    internals.end_by_epochs(trainer)
    assert trainer.fit_loop._iteration_based_training() is False


def test_a_strategy_passes_on_what_it_was_built_with() -> None:
    trainer = _trainer(strategy="ddp", devices=1)
    assert isinstance(trainer.strategy, DDPStrategy)
    internals.find_unused_parameters(trainer)
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True


def test_launchers_hand_weights_over_in_a_file_of_this_name() -> None:
    assert f'"{internals.LAUNCHER_CHECKPOINT}"' in inspect.getsource(multiprocessing)


@pytest.mark.parametrize("chosen", [None, True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_early_stopping_reads_when_it_says(chosen: bool | None, every: int) -> None:
    trainer = _trainer(check_val_every_n_epoch=every)
    callback = EarlyStopping("val/loss", check_on_train_epoch_end=chosen)
    expected = internals.reads_at_epoch_end(callback, trainer)
    callback.setup(trainer, L.LightningModule(), "fit")
    assert callback._check_on_train_epoch_end is expected


def test_an_average_is_a_model_of_its_own_that_is_updated_by_steps() -> None:
    source = inspect.getsource(WeightAveraging)
    assert "self._average_model" in source
    assert "self._latest_update_step" in source
