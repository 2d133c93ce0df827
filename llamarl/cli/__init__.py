"""The `llamarl` command: thin; each command parses, calls the library, and prints."""
