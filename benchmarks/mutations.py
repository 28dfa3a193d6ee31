"""Mutation tests: remove one behavior at a time and run the tests that should detect it.

    python benchmarks/mutations.py [NAME ...] [--jobs N] [--list]

Copies the tracked files of this checkout to a temporary folder and runs the tests once without mutations. It then
applies one mutation at a time and runs its tests. PYTHONPATH points to the copy, so processes started by tests are
mutated too. A mutation is caught if a test fails or takes longer than TIMEOUT. Prints a table and "N of M caught";
exits with 1 if a mutation survived. NAME selects mutations whose name contains it.

The mutations are a plain list of replacements. mutmut and cosmic-ray generate thousands of mutants from the syntax
tree. Most of these change nothing visible to users, and each takes about ten seconds, because every run imports torch.
They report lines instead of behaviors, and cannot cover behaviors provided by Lightning, such as gradient clipping. A
text that does not occur exactly once in its file is an error, so the list must change together with the code.
"""

import argparse
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import measure

ROOT = Path(__file__).absolute().parents[1]
TIMEOUT = 300  # seconds per test run; a mutant may wait forever
_PYTEST = ("-m", "pytest", "-q", "-x", "-rfE", "--override-ini=addopts=", "-p", "no:cacheprovider", "-W", "ignore")


class Mutation(NamedTuple):
    """A behavior to remove.

    Attributes:
        name: description of the behavior.
        file: file of the package.
        old: text that occurs exactly once in the file.
        new: replacement.
        tests: test files or node ids below tests/ that check the behavior.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class Result(NamedTuple):
    """The result of a mutation: the first failed test, or None, and the seconds of the run."""

    caught_by: str | None
    seconds: float


MUTATIONS = [
    # data: the split
    Mutation(
        "exact duplicates stay on one side of the split",
        "data/validation_part.py",
        'group, blank = table["pixel_sha1"].to_numpy()',
        'group, blank = table["id"].to_numpy()',
        ("data/test_datamodule.py::test_exact_duplicates_stay_on_one_side",),
    ),
    Mutation(
        "slides that share a duplicate stay together",
        "data/validation_part.py",
        'np.where(blank, table["id"], group)',
        'table["id"].to_numpy()',
        ("data/test_datamodule.py::test_exact_duplicates_stay_on_one_side",),
    ),
    Mutation(
        "groups that share a patch are joined",
        "data/splits.py",
        "connected_components(edges, directed=False)[1][first]",
        "first",
        ("data/test_splits.py",),
    ),
    Mutation(
        "the split does not depend on the order of rows",
        "data/splits.py",
        'order = np.argsort(table["id"].to_numpy())',
        "order = np.arange(len(table))",
        ("data/test_splits.py",),
    ),
    Mutation(
        "the split depends on its seed",
        "data/splits.py",
        "np.random.default_rng(seed)",
        "np.random.default_rng(0)",
        ("data/test_splits.py",),
    ),
    Mutation(
        "groups are dealt by the counts of both classes",
        "data/splits.py",
        "= misfit.argmin()",
        "= (have - target).sum(axis=1).argmin()",
        ("data/test_splits.py",),
    ),
    Mutation(
        "a part without a class gets a group that has it",
        "data/splits.py",
        "    _give_both_classes(part, counts, target)\n    parts =",
        "    parts =",
        ("data/test_splits.py",),
    ),
    Mutation(
        "a split of both classes is found wherever there is one",
        "data/splits.py",
        "for least in (1, 0)",
        "for least in (1,)",
        ("data/test_splits.py::test_a_split_of_both_classes_is_found_wherever_there_is_one",),
    ),
    Mutation(
        "parts that are due a class come first",
        "data/splits.py",
        "for least in (1, 0)",
        "for least in (0,)",
        ("data/test_splits.py::test_splits_of_earlier_versions_are_the_same",),
    ),
    Mutation(
        "patients are looked for on both sides",
        "data/leakage.py",
        '("slide", "patient", holdout or "slide")',
        '("slide", holdout or "slide")',
        ("data/test_leakage.py",),
    ),
    Mutation(
        "extra patches of the held-out column do not train",
        "data/leakage.py",
        '{*LEVELS, holdout or "slide"} & set(extra)',
        "{*LEVELS} & set(extra)",
        ("data/test_leakage.py",),
    ),
    Mutation(
        "bare glass of a held-out slide does not let its extra patches train",
        "data/leakage.py",
        "mask = mask & ~in_several_groups(",
        "mask = mask | in_several_groups(",
        ("data/test_leakage.py",),
    ),
    Mutation(
        "every fold is checked for both classes, not the current one alone",
        "data/splits.py",
        "for number in range(len(shares)):",
        "for each in (fold,):",
        ("data/test_splits.py",),
    ),
    Mutation(
        "an older split is joined by id",
        "data/splits.py",
        'table["id"].map(part) == "val"',
        'part == "val"',
        ("data/test_splits.py",),
    ),
    Mutation(
        "a split file that separates duplicates is reported",
        "data/validation_part.py",
        "if copies := int(",
        "if copies := 0 * int(",
        ("data/test_training_patches.py::test_exact_copies_on_both_sides_of_a_split_file",),
    ),
    # data: the packed store
    Mutation(
        "rows of the store are found by id",
        "data/packed_store.py",
        "np.searchsorted(self.ids, ids.to_numpy(dtype=str))",
        "np.arange(len(ids))",
        ("data/test_packed_store.py::test_rows_are_the_pixels_of_their_ids",),
    ),
    Mutation(
        "ids are compared with the SHA-1 of the pixels",
        "data/packing.py",
        '(ids != index["pixel_sha1"])',
        "(ids != ids)",
        ("data/test_packed_store.py::test_ids_are_checked_against_pixels",),
    ),
    Mutation(
        "an overwritten file that keeps its size and date is packed again",
        "data/fingerprint.py",
        "\\t{status.st_mtime_ns}\\t{status.st_ctime_ns}\\t{status.st_ino}",
        "",
        ("data/test_packed_store.py::test_rebuilt_when_files_change",),
    ),
    Mutation(
        "a truncated pack is packed again",
        "data/packed_store.py",
        "if (actual := path.stat().st_size) != size:",
        "if (actual := path.stat().st_size) < 0:",
        ("data/test_packed_store.py::test_a_damaged_pack_is_packed_again",),
    ),
    Mutation(
        "verify hashes the packed pixels",
        "data/packed_store.py",
        "packed += int((recorded != of_pack).sum())",
        "packed += 0",
        ("data/test_packed_store.py::test_verify_hashes_packed_pixels_and_image_files",),
    ),
    Mutation(
        "verify hashes the image files",
        "data/packed_store.py",
        "files += int((recorded != of_files).sum())",
        "files += 0",
        ("data/test_packed_store.py::test_verify_hashes_packed_pixels_and_image_files",),
    ),
    Mutation(
        "older packs are removed",
        "data/packing.py",
        "        for path in stale:\n            remove_pack(path)\n    except",
        "        pass\n    except",
        ("data/test_packed_store.py::test_rebuilt_when_files_change",),
    ),
    Mutation(
        "a killed pack is not used",
        "data/packed_store.py",
        "(candidate / name for candidate in folders if (candidate / name).is_dir())",
        '(path for place in places for path in place.glob(f"{name}*"))',
        ("data/test_packed_store.py::test_killed_pack_leaves_nothing_that_is_taken_for_whole",),
    ),
    Mutation(
        "of two processes one packs and the other waits",
        "data/packed_store.py",
        "            try:\n                store = _read_store(folder, table)\n                if verify:",
        "            try:\n                raise ValueError\n                if verify:",
        ("data/test_packed_store.py::test_whoever_waits_for_a_pack_does_not_pack_again",),
    ),
    Mutation(
        "data folders that share a cache folder keep apart",
        "data/packed_store.py",
        "hexdigest()[:8]",
        "hexdigest()[:0]",
        ("data/test_packed_store.py::test_two_folders_share_a_cache_folder",),
    ),
    # data: loaders
    Mutation(
        "labels are gathered with their patches",
        "data/batches.py",
        "self.labels[batch]",
        "self.labels[np.sort(batch)]",
        ("data/test_datamodule.py::test_each_patch_once_with_its_pixels_and_label",),
    ),
    Mutation(
        "each epoch has an order of its own",
        "data/batches.py",
        "[self.seed, self.epoch]",
        "[self.seed, 0]",
        ("data/test_datamodule.py::test_order_follows_from_seed_and_epoch",),
    ),
    Mutation(
        "processes share an epoch",
        "data/batches.py",
        "np.arange(self.count)[self.rank :: self.world_size]",
        "np.arange(self.count)",
        ("data/test_datamodule.py::test_processes_share_an_epoch",),
    ),
    Mutation(
        "statistics are measured on the training part alone",
        "data/datamodule.py",
        "return self._train[np.sort(chosen)]",
        "return Patches(self.train_store, np.arange(len(self.train_store.ids)), None, 0)[np.sort(chosen)]",
        ("data/test_datamodule.py::test_a_sample_is_of_the_training_part_alone",),
    ),
    # scores
    Mutation(
        "the bootstrap draws whole clusters",
        "metrics/bootstrap.py",
        "np.unique(cluster, return_inverse=True)[1][order]",
        "np.arange(len(label))[order]",
        ("metrics/test_classification.py",),
    ),
    Mutation(
        "the AUROC counts ties as a half",
        "metrics/bootstrap.py",
        "false / 2",
        "false",
        ("metrics/test_classification.py",),
    ),
    Mutation(
        "intervals are of 95 percent",
        "metrics/bootstrap.py",
        "[0.025, 0.975]",
        "[0.05, 0.95]",
        ("metrics/test_classification.py",),
    ),
    Mutation(
        "bootstrap samples of one class are left out",
        "metrics/bootstrap.py",
        "samples = samples[np.isfinite(samples)]",
        "samples = np.nan_to_num(samples)",
        ("metrics/test_classification.py",),
    ),
    Mutation(
        "the variance of DeLong's test counts negatives too",
        "metrics/bootstrap.py",
        " + by_negative.var(ddof=1) / len(by_negative)",
        "",
        ("metrics/test_classification.py",),
    ),
    Mutation(
        "the p value of DeLong's test is two-sided",
        "metrics/bootstrap.py",
        "2 * norm.sf",
        "norm.sf",
        ("metrics/test_classification.py",),
    ),
    Mutation(
        "the temperature divides the logit",
        "metrics/calibration.py",
        "logit / np.exp(log)",
        "logit * np.exp(log)",
        ("metrics/test_classification.py",),
    ),
    Mutation(
        "the threshold maximizes balanced accuracy",
        "metrics/classification.py",
        "np.argmax(found - false)",
        "np.argmax(found - 2 * false)",
        ("metrics/test_classification.py",),
    ),
    Mutation(
        "the threshold lies between two logits",
        "metrics/classification.py",
        "(logits[best] + below) / 2",
        "logits[best]",
        ("metrics/test_classification.py",),
    ),
    Mutation(
        "what is fitted is not evaluated on the same patches",
        "metrics/calibration.py",
        "fit(label[~mask], logit[~mask])",
        "fit(label, logit)",
        ("metrics/test_classification.py",),
    ),
    # predictions
    Mutation(
        "probabilities of a submission are joined by id",
        "training/predictions.py",
        "(logit.loc[ids] / temperature)",
        "(logit / temperature)",
        ("training/test_predict.py::test_predictions_are_joined_by_id_in_whichever_order_they_come",),
    ),
    Mutation(
        "labeled predictions are joined by id",
        "training/predictions.py",
        'logit=logit.loc[rows["id"]]',
        "logit=logit",
        ("training/test_predict.py::test_predictions_are_joined_by_id_in_whichever_order_they_come",),
    ),
    Mutation(
        "answers are joined by id",
        "training/predictions.py",
        'without_suffix(rows["id"]).map(truth)',
        "truth.to_numpy()",
        ("training/test_predict.py::test_predictions_are_joined_by_id_in_whichever_order_they_come",),
    ),
    Mutation(
        "a submission has the order of the sample",
        "training/predictions.py",
        'return pd.DataFrame({"id": ids.to_numpy(),',
        'return pd.DataFrame({"id": sorted(ids),',
        ("training/test_predict.py::test_predictions_are_joined_by_id_in_whichever_order_they_come",),
    ),
    Mutation(
        "predictions that are NaN are refused",
        "training/predictions.py",
        "int((~np.isfinite(label)).sum())",
        "0",
        ("training/test_predict.py::test_a_submission_needs_one_probability_for_each_id",),
    ),
    # optimizer
    Mutation(
        "AdamW decays weights",
        "models/optim.py",
        'AdamW(groups, options["lr"], weight_decay=options["weight_decay"]',
        'AdamW(groups, options["lr"], weight_decay=0.0',
        ("models/test_classifier.py::test_optimizers_decay_weights_and_sgd_has_momentum",),
    ),
    Mutation(
        "SGD decays weights",
        "models/optim.py",
        'options["momentum"], weight_decay=decay,',
        'options["momentum"], weight_decay=0.0,',
        ("models/test_classifier.py::test_optimizers_decay_weights_and_sgd_has_momentum",),
    ),
    Mutation(
        "SGD has momentum",
        "models/optim.py",
        'options["momentum"], weight_decay',
        "0.0, weight_decay",
        ("models/test_classifier.py::test_optimizers_decay_weights_and_sgd_has_momentum",),
    ),
    Mutation(
        "the rate falls to zero",
        "models/optim.py",
        "math.pi * min(1.0, share)",
        "math.pi * min(0.9, share)",
        ("models/test_classifier.py::test_rate_warms_up_and_falls_to_zero_along_a_cosine",),
    ),
    Mutation(
        "the rate warms up",
        "models/optim.py",
        "(step + 1) / (warmup + 1)",
        "1.0",
        ("models/test_classifier.py::test_rate_warms_up_and_falls_to_zero_along_a_cosine",),
    ),
    # classifier
    Mutation(
        "gradients are clipped",
        "models/classifier.py",
        "    def on_load_checkpoint(self,",
        "    def configure_gradient_clipping(self, *args: object, **kwargs: object) -> None:\n"
        "        pass\n\n    def on_load_checkpoint(self,",
        ("models/test_classifier.py::test_gradients_are_clipped_in_any_precision",),
    ),
    Mutation(
        "labels are smoothed in training",
        "models/classifier.py",
        "target = target * (1 - smoothing) + smoothing / 2",
        "pass",
        ("models/test_classifier.py::test_label_smoothing_counts_in_training_alone",),
    ),
    Mutation(
        "labels are smoothed in training alone",
        "models/classifier.py",
        '            logit = self.predict_logits(batch["image"])\n',
        '            logit = self.predict_logits(batch["image"])\n'
        '            target = label * (1 - self.hparams["label_smoothing"]) + self.hparams["label_smoothing"] / 2\n',
        ("models/test_classifier.py::test_label_smoothing_counts_in_training_alone",),
    ),
    Mutation(
        "pixels are augmented in float32",
        "models/classifier.py",
        "with torch.no_grad(), torch.autocast(self.device.type, enabled=False):  # pixels keep",
        "with torch.no_grad():  # pixels keep",
        ("models/test_classifier.py::test_pixels_are_augmented_in_float32_whatever_the_precision",),
    ),
    Mutation(
        "the head works in float32",
        "models/heads.py",
        "with torch.autocast(features.device.type, enabled=False):",
        "with torch.autocast(features.device.type):",
        ("models/test_backbones.py::test_one_logit_in_float32_and_a_body_that_freezes_without_the_head",),
    ),
    Mutation(
        "a frozen BatchNorm keeps its statistics",
        "models/backbones.py",
        "network.train(not frozen)",
        "network.train()",
        ("models/test_classifier.py::test_body_keeps_still_in_the_first_epoch_and_learns_in_the_second",),
    ),
    Mutation(
        "random weights are not frozen",
        "models/trained_network.py",
        ' and self.init_weights != "none"',
        "",
        ("models/test_classifier.py::test_body_keeps_still_in_the_first_epoch_and_learns_in_the_second",),
    ),
    Mutation(
        "AUROC is of the whole epoch",
        "models/classifier.py",
        "self.log_dict(metrics, ",
        "self.log_dict(metrics.compute(), ",
        ("models/test_classifier.py::test_auroc_is_of_the_whole_epoch",),
    ),
    Mutation(
        "each step has draws of its own",
        "models/classifier.py",
        "self.current_epoch, batch_idx, self.global_rank",
        "self.current_epoch, 0, self.global_rank",
        ("models/test_classifier.py::test_each_epoch_step_and_process_has_draws_of_its_own",),
    ),
    Mutation(
        "each process has draws of its own",
        "models/classifier.py",
        "batch_idx, self.global_rank)",
        "batch_idx, 0)",
        ("models/test_classifier.py::test_each_epoch_step_and_process_has_draws_of_its_own",),
    ),
    Mutation(
        "a resumed run repeats the draws of an epoch",
        "models/classifier.py",
        "torch.manual_seed(int(",
        "(int(",
        ("training/test_fit.py::test_a_number_of_steps_is_the_same_run_resumed",),
    ),
    Mutation(
        "test-time augmentation is over all eight symmetries",
        "transforms/geometry.py",
        "for flips in ([], [2], [3], [2, 3]):",
        "for flips in ([], [2, 3]):",
        ("transforms/test_augment.py",),
    ),
    # augmentation
    Mutation(
        "each patch has a symmetry of its own",
        "transforms/geometry.py",
        "return torch.rand(count, 3) < 0.5",
        "return (torch.rand(1, 3) < 0.5).expand(count, 3)",
        ("transforms/test_augment.py",),
    ),
    Mutation(
        "mixup mixes labels too",
        "transforms/augmentations.py",
        "torch.lerp(neighbors(label), label, share)",
        "label",
        ("transforms/test_augment.py",),
    ),
    # training
    Mutation(
        "best.ckpt is of the earlier of two equal scores",
        "training/best_and_last.py",
        "score > self.best_score",
        "score >= self.best_score",
        ("training/test_fit.py::test_best_checkpoint_is_of_the_earlier_of_two_equal_scores_resumed_or_not",),
    ),
    Mutation(
        "a resumed run keeps its best score",
        "training/best_and_last.py",
        "        if self.resuming:\n",
        "        if False:\n",
        ("training/test_fit.py::test_best_checkpoint_is_of_the_earlier_of_two_equal_scores_resumed_or_not",),
    ),
    Mutation(
        "a checkpoint is written whole or not at all",
        "training/checkpoint.py",
        "atomic_write(Path(path), buffer.getvalue())",
        "Path(path).write_bytes(buffer.getvalue())",
        ("faults/test_stops.py::test_no_room_for_a_checkpoint",),
    ),
    Mutation(
        "two runs never get one folder",
        "utils/run_dir.py",
        "folder.mkdir()",
        "folder.mkdir(exist_ok=True)",
        (
            "training/test_fit.py::test_runs_at_once_get_folders_of_their_own",
            "training/test_fit.py::test_a_folder_that_another_run_has_just_made_is_not_taken",
        ),
    ),
    Mutation(
        "a loss that is NaN stops the run",
        "training/nan_guard.py",
        '~outputs["loss"].isfinite()',
        '(outputs["loss"] < outputs["loss"])',
        ("faults/test_numbers.py::test_a_loss_that_is_no_number_names_step_patches_and_the_last_good_checkpoint",),
    ),
    Mutation(
        "a validation loss that is not finite stops the run",
        "training/nan_guard.py",
        'elif not trainer.callback_metrics["val/loss"].isfinite():',
        "elif False:",
        ("faults/test_numbers.py::test_weights_that_are_of_no_use_are_not_kept",),
    ),
    # resuming, metrics, overlap
    Mutation(
        "a plain trainer loads the weights that the module names",
        "models/trained_network.py",
        "        if self._load_pretrained_weights:\n",
        "        if False:\n",
        ("models/test_classifier.py::test_a_plain_trainer_loads_the_weights_that_the_module_names",),
    ),
    Mutation(
        "a resumed epoch has its own order with loader workers",
        "data/batches.py",
        "        self.epoch = epoch\n",
        "        self.epoch = 0\n",
        ("training/test_resume.py::test_a_new_run_from_a_checkpoint_draws_the_batches_of_its_epoch_with_workers",),
    ),
    Mutation(
        "other steps per epoch are refused when resuming",
        "training/resume.py",
        'if checkpoint["global_step"] and recorded != steps:',
        "if False:",
        ("training/test_resume.py::test_a_new_run_from_a_checkpoint_has_its_steps_per_epoch",),
    ),
    Mutation(
        "another recipe is refused when resuming",
        "training/resume.py",
        "        if name in fixed:\n",
        "        if False:\n",
        ("training/test_resume.py::test_another_recipe_within_a_run_is_refused_by_name",),
    ),
    Mutation(
        "a longer run has the rates of its own schedule",
        "models/optim.py",
        'group["lr"] = base * factor(self.last_epoch)',
        "pass",
        ("training/test_resume.py::test_a_longer_run_has_the_rates_of_the_longer_schedule",),
    ),
    Mutation(
        "an epoch ends with the validation of its weights",
        "training/resume.py",
        "    if not fits:\n",
        "    if False:\n",
        ("training/test_resume.py::test_validation_that_does_not_end_an_epoch_is_refused",),
    ),
    Mutation(
        "AUROC is of logits",
        "metrics/torch_metrics.py",
        "self.preds.append(preds)",
        "self.preds.append(preds.sigmoid())",
        ("metrics/test_torch_metrics.py::test_auroc_of_overconfident_logits_is_the_same_everywhere",),
    ),
    Mutation(
        "accuracy is of logits",
        "metrics/torch_metrics.py",
        "super().update((preds > 0).int(), target)",
        "super().update(preds, target)",
        ("metrics/test_torch_metrics.py::test_logits_between_0_and_1_are_not_taken_for_probabilities",),
    ),
    Mutation(
        "probabilities of a submission are float64",
        "evaluation/crossval.py",
        '"prob": expit(logit.to_numpy())',
        '"prob": expit(logit.to_numpy(dtype=np.float32))',
        ("metrics/test_torch_metrics.py::test_auroc_of_overconfident_logits_is_the_same_everywhere",),
    ),
    Mutation(
        "patches that trained the network are counted by ids that are SHA-1",
        "data/training_patches.py",
        'np.isin(_hash_ids(table["id"]), self.ids) & ',
        "np.zeros(len(table), dtype=bool) & ",
        ("data/test_training_patches.py::test_patches_are_counted_by_pixels_or_by_ids_that_are_sha1",),
    ),
    Mutation(
        "file names do not tell which patches trained the network",
        "data/training_patches.py",
        ' & looks_like_sha1(table["id"]).to_numpy()',
        "",
        ("data/test_training_patches.py::test_a_file_name_says_nothing_of_the_pixels",),
    ),
    Mutation(
        "patches that trained the network are counted by pixels",
        "data/training_patches.py",
        'found |= np.isin(_shorten(table["pixel_sha1"]), self.pixels)',
        "pass",
        ("data/test_training_patches.py::test_patches_are_counted_by_pixels_or_by_ids_that_are_sha1",),
    ),
    Mutation(
        "patches that trained earlier weights count",
        "models/trained_network.py",
        "self.trained |= TrainingPatches.of(",
        "self.trained = TrainingPatches.of(",
        ("data/test_training_patches.py::test_patches_are_remembered_over_two_runs",),
    ),
    Mutation(
        "statistics of averaged weights are measured",
        "training/weight_averaging.py",
        "if self._measured == trainer.global_step or not norms or not self._recent:",
        "if True:",
        ("training/test_weight_averaging.py::test_statistics_are_measured_with_the_averaged_weights",),
    ),
    Mutation(
        "rows name ids of their own part",
        "data/batches.py",
        "torch.from_numpy(rows + self.first_row)",
        "torch.from_numpy(rows)",
        ("data/test_datamodule.py::test_rows_name_their_ids_whatever_was_set_up_when",),
    ),
    Mutation(
        "spawned processes keep a pack that was replaced",
        "data/packed_store.py",
        'os.name == "posix" and get_spawning_popen() is not None',
        "False",
        ("data/test_datamodule.py::test_a_spawned_process_reads_on_after_the_images_were_packed_again",),
    ),
    Mutation(
        "a signal waits for a safe point",
        "utils/signals.py",
        "if len(_received) > 1:",
        "if True:",
        ("utils/test_signals.py::test_a_signal_within_a_callback_is_raised_at_the_next_safe_point",),
    ),
    Mutation(
        "a signal that came last is not forgotten",
        "utils/parallel.py",
        "    stop_if_asked()\n    return future.result()",
        "    return future.result()",
        ("utils/test_parallel.py::test_workers_end_with_their_parent",),
    ),
    Mutation(
        "worker processes end with their parent",
        "utils/parallel.py",
        "(connection.wait([parent]), os._exit(1))",
        "connection.wait([parent])",
        ("utils/test_parallel.py::test_workers_end_with_their_parent",),
    ),
    Mutation(
        "a daemon starts no worker processes",
        "utils/parallel.py",
        " or current_process().daemon",
        "",
        ("faults/test_hangs.py::test_packing_and_loading_within_a_pool",),
    ),
    Mutation(
        "blank patches that slides share are not held out",
        "data/validation_part.py",
        "mask &= ~blank",
        "pass",
        ("data/test_splits.py::test_blank_patches_that_slides_share_do_not_join_them_and_train",),
    ),
    Mutation(
        "sides that break the equivariance are refused",
        "models/backbones.py",
        "    if side % multiple:\n",
        "    if False:\n",
        ("models/test_p4m_resnet.py::test_a_side_that_breaks_the_promise_is_refused_with_the_nearest_that_keeps_it",),
    ),
    Mutation(
        "a network sees all of a patch",
        "models/backbones.py",
        "    return max(cuts, default=1)\n",
        "    return 1\n",
        ("models/test_backbones.py::test_a_network_that_would_not_see_the_borders_is_refused",),
    ),
    Mutation(
        "a plateau is stepped before its epoch is saved",
        "models/classifier.py",
        "                scheduler.step(score.item())\n",
        "                pass\n",
        ("models/test_optim.py::test_a_plateau_takes_a_tenth_of_the_rate_and_resumes_as_if_never_stopped",),
    ),
    Mutation(
        "a run's modules are imported with its checkpoint",
        "training/checkpoint.py",
        "    import_modules(modules)\n",
        "",
        ("test_extending.py::test_a_module_of_ones_own_adds_to_every_table_and_comes_with_its_run",),
    ),
    Mutation(
        "folds hold out slides of any layout that names them",
        "data/validation_part.py",
        "or not source.knows_slides():\n",
        "or True:\n",
        ("test_extending.py::test_folds_hold_out_whole_slides_of_any_layout_that_names_them",),
    ),
    Mutation(
        "an int stays an int",
        "training/lightning_internals.py",
        "action._typehint = int_before_float(action._typehint)",
        "pass",
        ("cli/test_cli.py::test_an_int_stays_an_int_and_a_float_a_float",),
    ),
    # reports
    Mutation(
        "intervals of a report are over slides",
        "evaluation/labeled_predictions.py",
        'return rows[level].to_numpy(), f"{level}s"',
        'return rows["id"].to_numpy(), f"{level}s"',
        ("evaluation/test_evaluate.py::test_a_file_of_predictions_with_slides",),
    ),
    Mutation(
        "each fold is scored by its last epoch, not its best",
        "evaluation/crossval.py",
        "loaded = LoadedRun.open(run.last)\n    if not scored:",
        "loaded = LoadedRun.open(run.best)\n    if not scored:",
        ("evaluation/test_crossval.py::test_each_fold_is_scored_by_its_last_epoch",),
    ),
    Mutation(
        "the last epoch of each fold predicts the test part",
        "evaluation/crossval.py",
        "predict(loaded, _of_last(config, loaded))",
        "predict(LoadedRun.open(run.best), _of_last(config, loaded))",
        ("evaluation/test_crossval.py::test_each_fold_is_scored_by_its_last_epoch",),
    ),
    Mutation(
        "patches that trained the network give no thresholds",
        "evaluation/evaluate.py",
        '    report["thresholds"] = None\n',
        "",
        ("data/test_training_patches.py::test_an_evaluated_run_whose_data_changed",),
    ),
    Mutation(
        "patches that trained the network give no temperature",
        "evaluation/evaluate.py",
        'report["temperature"] = None  #',
        "pass  #",
        ("data/test_training_patches.py::test_weights_of_a_run_with_another_split",),
    ),
    Mutation(
        "a leak that may be does not hide a certain one",
        "evaluation/labeled_predictions.py",
        "found = [_find_split_leakage(predictions)]",
        "found = [] if predictions.trained.caution else [_find_split_leakage(predictions)]",
        ("evaluation/test_evaluate.py::test_a_certain_leak_comes_before_one_that_may_be",),
    ),
    Mutation(
        "the cautions of all folds count",
        "evaluation/labeled_predictions.py",
        "        trained |= own\n",
        "        trained = own\n",
        ("evaluation/test_crossval.py::test_the_cautions_of_all_folds_are_given",),
    ),
    # resuming, features and BatchNorm
    Mutation(
        "a class's threshold counts the patch to come",
        "metrics/abstention.py",
        "int(error * (len(values) + 1))",
        "int(error * len(values))",
        ("metrics/test_abstention.py",),
    ),
    Mutation(
        "measured statistics hold nothing of the old ones",
        "models/batchnorm.py",
        "norm.training, norm.momentum = True, 1.0",
        "norm.training = True",
        ("training/test_adapt_batchnorm.py::test_statistics_are_those_of_the_patches",),
    ),
    Mutation(
        "of several views the features are those of the first",
        "models/stage_statistics.py",
        "torch.cat([views[0] for",
        "torch.cat([views[-1] for",
        ("training/test_feature_distance.py::test_every_network_has_early_stages",),
    ),
    Mutation(
        "wide images are cut at their own center",
        "data/resize.py",
        "left, top = (image.width - side) / 2, (image.height - side) / 2",
        "left, top = (image.height - side) / 2, (image.width - side) / 2",
        ("data/test_resize.py",),
    ),
    Mutation(
        "cached features depend on the size of patches",
        "training/probe.py",
        '"crop", "size", "stain"',
        '"crop", "stain"',
        ("training/test_probe.py::test_features_are_extracted_once",),
    ),
    Mutation(
        "distances of another step are not used",
        "training/feature_distance.py",
        '(self.step, self.pixels) == (checkpoint["global_step"], ',
        '(checkpoint["global_step"], self.pixels) == (checkpoint["global_step"], ',
        ("training/test_feature_distance.py::test_distances_are_of_the_checkpoint_and_do_not_depend_on_the_batch",),
    ),
    Mutation(
        "a resumed run keeps the scale of its images",
        "training/resume.py",
        '"data.resize", "data.mpp", ',
        '"data.resize", ',
        ("data/test_resize.py::test_a_run_keeps_how_its_images_were_made",),
    ),
    Mutation(
        "a resumed run keeps its extra patches",
        "training/resume.py",
        'if before.get("extra_train") != now.get("extra_train"):',
        "if False:",
        ("data/test_extra_train.py::test_a_run_records_them_and_resumes_with_the_same",),
    ),
    Mutation(
        "the last batches of an epoch make a step too",
        "training/run_record.py",
        "-(-batches_per_epoch(trainer, data) // trainer.accumulate_grad_batches)",
        "batches_per_epoch(trainer, data) // trainer.accumulate_grad_batches",
        ("training/test_resume.py::test_a_run_records_the_steps_that_its_epochs_have",),
    ),
    Mutation(
        "an epoch has no more batches than there are",
        "training/run_record.py",
        "min(batches, limit) if isinstance(limit, int)",
        "limit if isinstance(limit, int)",
        ("training/test_resume.py::test_a_run_records_the_steps_that_its_epochs_have",),
    ),
    Mutation(
        "the threshold of distances is that of patches that did not train",
        "training/feature_distance.py",
        "np.quantile(distance(val)",
        "np.quantile(distance(train)",
        ("training/test_feature_distance.py::test_distances_are_of_the_checkpoint_and_do_not_depend_on_the_batch",),
    ),
    Mutation(
        "a share of adapted variances is mixed with the trained ones",
        "training/adapt_batchnorm.py",
        "norm.running_var.lerp_(var, 1 - self.share)",
        "pass",
        ("training/test_adapt_batchnorm.py::test_statistics_are_those_of_the_patches",),
    ),
    Mutation(
        "statistics are adapted to patches of the whole part",
        "training/adapt_batchnorm.py",
        "np.random.default_rng(0).permutation(len(patches))[:PATCHES]",
        "np.arange(len(patches))[:PATCHES]",
        ("training/test_adapt_batchnorm.py::test_of_many_patches_some_of_the_whole_part_are_looked_at",),
    ),
    Mutation(
        "crop needs each of its pixels",
        "data/resize.py",
        'if self.mode == "scale" and side * (1 - _SLACK)',
        "if side * (1 - _SLACK)",
        ("data/test_resize.py",),
    ),
    # abstention
    Mutation(
        "thresholds that cross meet halfway",
        "metrics/abstention.py",
        "low = high = (low + high) / 2",
        "low = high",
        ("metrics/test_abstention.py",),
    ),
    Mutation(
        "patches of equal confidence are kept together",
        "metrics/abstention.py",
        "np.diff(confidence[order]) != 0",
        "np.diff(confidence[order]) != np.inf",
        ("metrics/test_abstention.py",),
    ),
    Mutation(
        "no patch is decided by thresholds fitted on it",
        "evaluation/decisions.py",
        "decide(logit[mask], thresholds)",
        "decide(logit[mask], conformal_thresholds(label, logit, error))",
        ("evaluation/test_decisions.py",),
    ),
    Mutation(
        "lower sd_views and ood_distance are more certain",
        "evaluation/decisions.py",
        "{name: -rows[column].to_numpy()",
        "{name: rows[column].to_numpy()",
        ("evaluation/test_decisions.py",),
    ),
    # slides
    Mutation(
        "lesions are one where their outlines are less than 75 um apart",
        "metrics/froc.py",
        "< MERGED / mpp / 2",
        "< MERGED / mpp",
        ("slides/test_detections.py",),
    ),
    Mutation(
        "the major axis is that of the ellipse",
        "metrics/froc.py",
        "4 * np.sqrt(",
        "3 * np.sqrt(",
        ("metrics/test_froc.py",),
    ),
    Mutation(
        "a pixel of a mask is tumor where its center is",
        "slides/outlines.py",
        "np.meshgrid((x + 0.5) * downsample, (y + 0.5) * downsample)",
        "np.meshgrid(x * downsample, y * downsample)",
        ("slides/test_annotations.py",),
    ),
    Mutation(
        "the points of an outline are in the order that they state",
        "slides/outlines.py",
        'key=lambda point: float(point.attrib["Order"])',
        "key=lambda point: 0",
        ("slides/test_annotations.py",),
    ),
    Mutation(
        "bootstrap samples without a lesion are left out",
        "slides/score_slides.py",
        " for slides in resampled if any(slide.lesions for slide in slides)]",
        " for slides in resampled]",
        ("slides/test_evaluate_slides.py",),
    ),
    Mutation(
        "detections are looked up by row and column",
        "slides/score_slides.py",
        'for axis in ("y", "x")',
        'for axis in ("x", "y")',
        ("slides/test_detections.py",),
    ),
    Mutation(
        "squares beyond the border count as 0 in a slide's score",
        "slides/heat_map.py",
        'np.ones((3, 3)), mode="constant")',
        'np.ones((3, 3)), mode="nearest")',
        ("slides/test_heat_map.py",),
    ),
    Mutation(
        "a lesion lies at the center of its square",
        "slides/heat_map.py",
        "(index + span.start + 0.5)",
        "(index + span.start)",
        ("slides/test_predict_slide.py",),
    ),
    Mutation(
        "a patch is resampled from a fraction of a pixel",
        "slides/patch_grid.py",
        "box = (x - column, y - row, x - column + width * scale, y - row + height * scale)",
        "box = (0, 0, width * scale, height * scale)",
        ("slides/test_patch_grid.py",),
    ),
    Mutation(
        "whole multiples of a scale are averaged",
        "slides/patch_grid.py",
        "Image.Resampling.BOX if scale > 1",
        "Image.Resampling.BILINEAR if scale > 1",
        ("slides/test_patch_grid.py",),
    ),
    Mutation(
        "rows of a strip that two share are weighted",
        "slides/slide_reader.py",
        "box = (0, top * step - start, columns,",
        "box = (0, 0, columns,",
        ("slides/test_patch_grid.py",),
    ),
    Mutation(
        "more tumor than in training raises the logits",
        "slides/correction.py",
        "logit(prior) - logit(training_prior)",
        "logit(training_prior) - logit(prior)",
        ("slides/test_predict_slide.py",),
    ),
    Mutation(
        "the scale of a calibration is positive",
        "slides/correction.py",
        ' or found["scale"] <= 0:',
        ":",
        ("slides/test_correction.py",),
    ),
    Mutation(
        "the most probable false positives are mined",
        "slides/hard_negatives.py",
        "np.argsort(-prob[row, column]",
        "np.argsort(prob[row, column]",
        ("slides/test_hard_negatives.py",),
    ),
    # export
    Mutation(
        "an exported logit is the mean of eight views",
        "export/export_module.py",
        "logit.view(8, -1).mean(dim=0)",
        "logit.view(8, -1)[0]",
        ("export/test_export.py::test_every_file_gives_the_logits_of_the_checkpoint",),
    ),
    Mutation(
        "ONNX takes any number of patches",
        "export/onnx_file.py",
        'dynamic_shapes=({0: torch.export.Dim("batch")},),',
        "dynamic_shapes=None,",
        ("export/test_export.py::test_every_file_gives_the_logits_of_the_checkpoint",),
    ),
    Mutation(
        "timm's second class is tumor",
        "export/timm_files.py",
        "torch.cat([torch.zeros_like(state[name]), state[name]])",
        "torch.cat([state[name], torch.zeros_like(state[name])])",
        ("export/test_export.py::test_the_folder_holds_what_each_program_reads",),
    ),
    Mutation(
        "a difference that is NaN is refused",
        "export/parity.py",
        "bool(getattr(self, self.limit.measure) <= self.limit.value)",
        "not getattr(self, self.limit.measure) > self.limit.value",
        ("export/test_parity.py::test_limits",),
    ),
]


def check(mutations: list[Mutation]) -> None:
    """Exit if a text does not occur exactly once, or two mutations have the same name."""
    wrong = []
    for mutation in mutations:
        source, expected = ROOT / "pcam_lightning" / mutation.file, f"{mutation.file}: {mutation.old!r}"
        count = source.read_text(encoding="utf-8").count(mutation.old) if source.is_file() else 0
        if count != 1:
            wrong.append(f"{mutation.name}: found {count} times, not once, in {expected}")
    if len({mutation.name for mutation in mutations}) < len(mutations):
        wrong.append("two mutations have the same name")
    if wrong:
        raise SystemExit("\n".join(["mutations.py does not fit the code:", *wrong]))


def copy_checkout(target: Path) -> None:
    """Copy the tracked files of the working tree."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def _environment(copy: Path) -> dict[str, str]:
    # No bytecode, because a mutant with the same size and modification second would match the old bytecode.
    return os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def run_tests(copy: Path, tests: tuple[str, ...], timeout: float | None = None) -> Result:
    """Run tests of a copy until the first failure.

    Raises:
        SystemExit: pytest itself failed, for example because a test does not exist.
    """
    begun = time.perf_counter()
    temporary = copy / ".pytest_tmp"
    command = [sys.executable, *_PYTEST, f"--basetemp={temporary}", "--hypothesis-seed=0"]
    process = subprocess.Popen(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=copy,
        env=_environment(copy),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # one signal also ends processes started by tests
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Result(f"no end after {timeout:.0f} s", time.perf_counter() - begun)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    seconds = time.perf_counter() - begun
    if process.returncode == 0:
        return Result(None, seconds)
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", output, re.MULTILINE)
    if process.returncode != 1 or failed is None:
        raise SystemExit(f"pytest {' '.join(tests)} ended with {process.returncode}:\n{output[-4000:]}")
    return Result(failed[1], seconds)


def try_mutation(copy: Path, mutation: Mutation) -> Result:
    """Apply a mutation to a copy, run its tests, and undo it."""
    source = copy / "pcam_lightning" / mutation.file
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        compile(source.read_bytes(), str(source), "exec")  # any test would catch a syntax error
        return run_tests(copy, mutation.tests, TIMEOUT)
    finally:
        source.write_text(text, encoding="utf-8")


def try_all(mutations: list[Mutation], copies: list[Path]) -> list[Result]:
    """Try mutations in parallel, one per copy, and print each result."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def attempt(mutation: Mutation) -> Result:
        copy = free.get()
        try:
            result = try_mutation(copy, mutation)
        finally:
            free.put(copy)
        print(f"{mutation.name}: {result.caught_by or 'SURVIVED'} ({result.seconds:.0f} s)", file=sys.stderr)
        return result

    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(attempt, mutations))


def main() -> None:
    """Run the tests without mutations, then each mutation, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="part of the names of the mutations to try; by default all")
    parser.add_argument("--jobs", type=int, default=1, help="mutations to try at a time")
    parser.add_argument("--list", action="store_true", help="print the names, check the texts and run nothing")
    args = parser.parse_args()
    check(MUTATIONS)
    mutations = [one for one in MUTATIONS if not args.name or any(part in one.name for part in args.name)]
    if not mutations:
        parser.error(f"no mutation matches {', '.join(args.name)}; --list prints the names")
    if args.list:
        print("\n".join(mutation.name for mutation in mutations))
        return
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copies = [Path(folder) / f"copy_{number}" for number in range(max(1, args.jobs))]
        for copy in copies:
            copy_checkout(copy)
        code = "import pcam_lightning; print(pcam_lightning.__file__)"
        command = [sys.executable, "-c", code]
        found = subprocess.run(command, cwd=copies[0], env=_environment(copies[0]), check=True, capture_output=True)
        if not Path(found.stdout.decode().strip()).is_relative_to(copies[0]):
            raise SystemExit(f"the tests would use the package at {found.stdout.decode().strip()}, not the copy")
        tests = tuple(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
        plain = run_tests(copies[0], tests)
        if plain.caught_by is not None:
            raise SystemExit(f"{plain.caught_by} fails without any mutation")
        print(f"all tests pass without a mutation ({plain.seconds:.0f} s)", file=sys.stderr)
        results = try_all(mutations, copies)
    rows = [
        [mutation.name, mutation.file, "SURVIVED" if result.caught_by is None else "caught", result.caught_by or ""]
        for mutation, result in zip(mutations, results, strict=True)
    ]
    caught = sum(result.caught_by is not None for result in results)
    print(measure.table(["behavior", "file", "", "by"], rows))
    print(f"{caught} of {len(results)} caught, in {time.perf_counter() - begun:.0f} s")
    raise SystemExit(caught < len(results))


if __name__ == "__main__":
    main()
