"""Operations on trained models: growing, pruning, merging, distilling, opening the attention window."""
