"""What runs tell CSV files, TensorBoard and W&B: loggers, summaries, pictures and dashboards."""
