"""Tests between hosts of their own: network namespaces on a bridge, real processes, real multicast, real faults."""
