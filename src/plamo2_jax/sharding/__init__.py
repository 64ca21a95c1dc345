"""Device meshes, and the shardings of parameters and batches on them."""
