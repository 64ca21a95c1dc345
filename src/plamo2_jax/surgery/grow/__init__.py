"""Growing a model: more channels and more layers from the weights of a smaller model."""
