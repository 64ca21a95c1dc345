"""Project folders: the config files that come with the package, and what they contain."""
