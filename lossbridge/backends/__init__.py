"""One module a framework: primitives, kernels, array conversion. No loss, and nothing else of lossbridge."""
