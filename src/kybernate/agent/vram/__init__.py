"""What has room in VRAM, what waits for it, and which workload gives way."""
