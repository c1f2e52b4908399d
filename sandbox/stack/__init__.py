"""The embedded stack: the whole platform with real servers, from one directory and one port base."""
