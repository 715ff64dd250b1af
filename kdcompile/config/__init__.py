"""The spec: its schema, how it is loaded, and the template of a new one."""
