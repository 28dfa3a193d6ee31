"""`python -m pcam_lightning`."""

import sys

if __name__ == "__main__":
    try:
        # Imported here, so that a spawned process which imports this module again does not load torch for it.
        from pcam_lightning.cli import main

        status = main()
    except KeyboardInterrupt:  # while torch is being imported
        status = 130
    sys.exit(status)
