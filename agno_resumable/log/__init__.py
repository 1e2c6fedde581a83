"""Where events live: the protocol and its backends."""
