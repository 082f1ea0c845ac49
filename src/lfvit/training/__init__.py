"""Training: losses, schedule and the LightningModule."""
