"""A device plugin and a DRA driver in Python, as small as they can be, to try the kubelet with."""
