"""How it is computed on a GPU: Triton kernels, a file an algorithm. Nothing here imports but torch and Triton."""
