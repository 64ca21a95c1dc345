"""The plamo2 command, with one module per subcommand."""
