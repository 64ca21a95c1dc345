"""pfgen-bench (arXiv:2502.09316): 50 questions in Japanese, answered in about 100 characters and scored with reference texts."""
