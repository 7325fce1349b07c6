"""Parts that any program here needs: processes, whole files, locks, paths, compilation, pictures."""
