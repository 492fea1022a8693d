"""The commands of `srgym`, one module each: its docstring is the help, `run(arguments)` the command."""
