"""`python -m pcam_lightning`."""

if __name__ == "__main__":  # a spawned process that imports this module again imports nothing for it
    from pcam_lightning.cli.main import run

    run()
