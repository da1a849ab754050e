"""The modules of `run`, in the order in which a run uses them."""
