"""`python -m pcam_lightning`."""

import gc
import sys

if __name__ == "__main__":
    try:
        # What torch and Lightning leave behind stays for good: looking through it for garbage takes a second of their
        # import, and another one when the process ends.
        gc.disable()
        # Imported here, so that a spawned process which imports this module again does not load torch for it.
        from pcam_lightning.cli.main import main

        gc.freeze()
        gc.enable()
        status = main()
    except KeyboardInterrupt:  # while torch is being imported
        status = 130
    # Some libraries (triton 3.9) look for leaks at the end, and take what is still frozen for one.
    gc.unfreeze()
    gc.disable()
    sys.exit(status)
