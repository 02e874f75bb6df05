"""Workloads as processes: started, watched, ended; each one's orders, one after the other."""
