"""The network, its starting weights, its optimizer and the LightningModule around it."""
