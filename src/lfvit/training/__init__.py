"""Training: losses, schedule, the LightningModule and `train(cfg)`."""
