"""Post-training: chat data, supervised fine-tuning, preferences, LoRA. Builds objectives and data sources and hands them to train."""
