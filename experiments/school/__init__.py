"""One penalty for 139 schools: exact duals, the global optimum, and what sharing it is worth."""
