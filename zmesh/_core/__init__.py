"""The rules of the mesh, as plain data and functions: no IO, no loop, no clock of its own (time is an argument)."""
