"""Stand-ins for the vendors and the embedded stack: everything `dezky up` starts that is not the product itself."""
