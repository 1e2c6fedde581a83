"""Two replicas behind a balancer, one of which is always being killed: the acceptance of runs that are run again."""
