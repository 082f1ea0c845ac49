"""The models, in plain PyTorch; `lfvit.create_model` builds them."""
