"""The command line: LightningCLI's fit, validate, test and predict, and the tools; how each of them ends."""

import sys
from argparse import ArgumentError

from lightning.fabric.utilities.exceptions import MisconfigurationException

from pcam_lightning.machine import interruptions, quieten
from pcam_lightning.messages import UserError
from pcam_lightning.parser import STAGES, PCamCLI


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: what follows the program's name; by default the process's own arguments.

    Returns:
        Exit status: 0, 2 where the user got something wrong, 130 after ctrl-C, 143 after SIGTERM.
    """
    args = sys.argv[1:] if args is None else args
    quieten()
    with interruptions() as received:
        try:
            if args and args[0] in STAGES:
                PCamCLI(args)
            else:  # half a second of libraries that no stage needs
                from pcam_lightning.tools import STUDIES, TOOLS

                if not args:
                    names = ", ".join((*STAGES, *STUDIES, *TOOLS))
                    raise UserError(f"no command: one of {names}; --help says what each does.")
                PCamCLI(args, TOOLS, STUDIES)
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
