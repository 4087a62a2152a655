"""Fine-tuning: data, the two stages, checkpoints."""
