"""The host that runs one app in a process of its own, in the app's environment.

It needs the standard library, and uvicorn from the environment (`fal` too, for `fal.App` classes). It is loaded
by path, so nothing of the server can be imported by an app. Everything between it and the server goes over one
SEQPACKET socket, the channel: the order in, then lines and `ready` out; its end means that the server is gone.
"""
