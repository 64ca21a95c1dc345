"""Post-training quantization: round to nearest, GPTQ, AWQ, SmoothQuant, float8, and a search for the bits of each matrix."""
