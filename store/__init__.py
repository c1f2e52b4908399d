"""MongoDB: one repository per collection. The only code that knows Motor."""
