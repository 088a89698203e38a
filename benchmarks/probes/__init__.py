"""Programs that measure from inside and print JSON; each runs in a process of its own."""
