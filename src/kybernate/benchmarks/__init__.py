"""`kybernate bench`, the agent and the workload that benchmarks, demo and fault tests use."""
