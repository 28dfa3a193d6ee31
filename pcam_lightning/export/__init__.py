"""Export a trained network as files for other programs."""

import os

# Since version 1.29, ONNX Runtime writes an identifier to disk, and sends it and the model's file name to Microsoft.
# Setting this variable before the import disables both.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
