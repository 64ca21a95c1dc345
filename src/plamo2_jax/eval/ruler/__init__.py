"""Questions about long contexts after RULER (arXiv:2404.06654), in English and Japanese, without text of other benchmarks."""
