"""The methods, one file each, and the recipes that train their priors."""
