"""Networks, initial weights, losses, optimizers and the LightningModule."""
