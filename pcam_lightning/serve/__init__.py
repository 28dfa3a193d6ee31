"""A local web page that predicts patches with an exported network."""
