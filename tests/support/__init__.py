"""What tests of several folders share: models, tokenizers, runs, servers, oracles. Imported as `support`."""
