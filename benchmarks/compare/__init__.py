"""zmesh beside a bare ROUTER/DEALER loop and beside the other libraries that are installed.

Each system is a file in `systems` with two sides: a server, and a client that keeps to one of the two interfaces of
`clients`. A side is a process of its own (`worker`), driven by one parent (`sides`), which plays the `scenarios` in
rounds and writes docs/performance.md (`page`), with what was promised (`marks`).
"""
