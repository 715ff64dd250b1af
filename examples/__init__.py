"""The examples that ship in the wheel: `kdcompile init --example NAME`."""
