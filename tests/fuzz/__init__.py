"""Whatever arrives: inputs that nobody should send, and who sends them.

    make fuzz                                             both of the following, in full
    python -m tests.fuzz.decoder --inputs 1000000         to the decoder and the check of messages, guided by coverage
    python -m tests.fuzz.sockets --inputs 20000           to a node, over real sockets, while others call it

The first needs atheris (`pip install --group fuzz`). What it finds it keeps as `crash-...` in the working directory:
`python -m tests.fuzz.decoder crash-...` runs that input again. All others come from a seed.
"""
