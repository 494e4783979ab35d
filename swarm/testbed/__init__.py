"""A whole swarm on one machine, with emulated distance, and the benchmark over it.

The face is `cluster.LocalSwarm`: real processes (`child_process`), real sockets, `delay_proxy` in between (`impairment`
is its pure half). `bench`, `bench_ring` and `bench_plots` are `swarm bench`.
"""
