"""Project folders: the config files that come with the package, and descriptions of their fields."""
