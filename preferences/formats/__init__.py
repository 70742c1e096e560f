"""How pairs and trajectories are written for each trainer; one file for each family of formats."""
