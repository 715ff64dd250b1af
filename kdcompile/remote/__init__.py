"""Run backends on another device: the client, its transports, and the agent on the device."""
