"""What each script at the top of the project runs; the only place that knows Hydra."""
