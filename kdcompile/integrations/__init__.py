"""Callbacks for other libraries' trainers, which compress the network when training ends."""
