"""Reading weights: ours and published ones, without running their code."""
