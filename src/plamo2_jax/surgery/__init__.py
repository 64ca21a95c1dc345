"""Operations on trained models: growing, pruning, merging, distillation and context extension."""
