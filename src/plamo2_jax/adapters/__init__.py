"""Low-rank adapters: which matrices have them, attaching them to a model, PEFT files, and opening models with adapters."""
