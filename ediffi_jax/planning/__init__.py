"""Planning: what a step costs on machines nobody owns; chips, topologies, collectives, FLOPs, the roofline."""
