"""The activator: one HTTP endpoint for all models; holds requests until the workload is up. See design.md."""
