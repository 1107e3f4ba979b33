"""The laboratory: thousands of simulated seconds of a mesh under load, to choose between balancing policies.

    python -m benchmarks.lab                    every scenario, ten seeds; writes docs/balancing.md
    python -m benchmarks.lab --quick            a smaller form of each, to see that all of it runs
    python -m benchmarks.lab --try half_slow    one scenario, on the terminal
    python -m benchmarks.lab --pick             what a choice costs

A discrete-event simulation: a heap of events, virtual time, everything random from one seed. Callers hold the policies,
members and averages of `zmesh._core` themselves, not copies; servers are queues. It knows no sockets, no event loop and
no protocol: what those do under faults `zmesh.testing` simulates, some thousand times slower.
"""
