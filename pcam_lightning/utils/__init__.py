"""What every other package uses, and none of the project's own subject."""
