"""The command line: LightningCLI's fit, validate, test and predict, and the tools."""

import sys
from argparse import ArgumentError
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from pcam_lightning.crossval import crossval
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.evaluate import compare, evaluate
from pcam_lightning.machine import interruptions, quieten
from pcam_lightning.messages import UserError, say
from pcam_lightning.official import has_part, is_official
from pcam_lightning.parser import PCamCLI, Sweeps, Tools
from pcam_lightning.slides import slides
from pcam_lightning.synthetic import synthesize


def pack(root: Path = Path("data"), cache_dir: Path | None = None, verify: bool = False) -> None:
    """Pack the images of a data folder, as the first fit and the first predict would; say what is there.

    Args:
        root: data folder in Kaggle's layout; one that has only test/ is packed too.
        cache_dir: folder for the packed images; by default .pcam_cache in the data folder.
        verify: stop where pixels are not what the ids say (Kaggle's ids are the SHA-1 of the pixels).
    """
    data = PCamDataModule(root, val_fraction=0, cache_dir=cache_dir, verify=verify)
    stages = {"train": "fit", "test": "predict"}
    if is_official(root):
        there = [part for part in stages if has_part(root, part)]
    else:  # patches alone are there to be predicted
        there = [part for part in stages if (root / part).is_dir()] or ["test"]
    for part, stage in stages.items():
        if part in there:
            data.setup(stage)
            assert data.store is not None
            distinct = len(set(data.store.pixel_sha1))
            say(f"{part}: {len(data.store.ids):,} patches, {distinct:,} distinct, in {data.store.path}.")


TOOLS: Tools = {"evaluate": evaluate, "compare": compare, "slides": slides, "pack": pack, "synthesize": synthesize}
SWEEPS: Sweeps = {"crossval": crossval}


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: what follows the program's name; by default the process's own arguments.

    Returns:
        Exit status: 0, 2 where the user got something wrong, 130 after ctrl-C, 143 after SIGTERM.
    """
    quieten()
    with interruptions() as received:
        try:
            PCamCLI(sys.argv[1:] if args is None else args, TOOLS, SWEEPS)
        except (UserError, ArgumentError, MisconfigurationException) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except OSError as error:  # a full disk, a folder without permission: the user's to mend, whatever the place
            print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
            return 2
        except (KeyboardInterrupt, SystemExit) as stop:
            if received:
                return 128 + received[0]
            if isinstance(stop, KeyboardInterrupt):
                raise
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return 0
