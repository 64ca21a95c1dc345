"""Post-training: chat data, supervised fine-tuning, preferences, LoRA. Makes the tasks and data sources that train runs."""
