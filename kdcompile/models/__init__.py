"""Teacher architectures that ship, and how a spec's factory becomes a network."""
