"""The plamo2 command: one thin file a verb."""
