"""Check this machine and boards for what kdcompile needs (`kdcompile doctor`)."""
