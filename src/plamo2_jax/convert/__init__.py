"""Reading and writing checkpoints in Hugging Face format (the public layout of PLaMo 2), and GGUF files."""
