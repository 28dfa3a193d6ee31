"""A trained network as a folder of files that other programs open."""
