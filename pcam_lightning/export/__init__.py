"""A trained network as a folder of files that other programs open."""

import os

# From version 1.29 on, ONNX Runtime writes an identifier to disk, and sends it and the model's file name to Microsoft,
# unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
