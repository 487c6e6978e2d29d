"""Speed, beside a peer's on the same work; figures are ratios within one run, for machines are noisy."""
